/* test_sample.c: the device's choice of a token against the engine's sampler. */
#include "gpu_rig.h"

#include "engine/sampler.h"

#include <math.h>

#define ROWS 6
#define MAX_SEEN 40
#define MAX_BIAS 8
#define MAX_VOCAB 8192
#define WORDS (MAX_VOCAB / 32)

/* What a row asks for: the engine's form, and the lists. */
typedef struct ask {
    ol_sampling how;
    int index;
    ol_logit_bias bias[MAX_BIAS];
    gpu_seen seen[MAX_SEEN];
    int n_seen;
    bool masked;
    uint32_t mask[WORDS];
} ask;

typedef struct batch {
    int vocab, ld;
    float *logits; /* [ROWS][ld] */
    ask rows[ROWS];
} batch;

/* -- the device's ----------------------------------------------------------------------------- */

static void lower(const ask *a, int row, gpu_sampling *how)
{
    const ol_sampling *s = &a->how;

    *how = (gpu_sampling){.seed = s->seed,
                          .index = a->index,
                          .temperature = s->temperature,
                          .top_k = s->top_k,
                          .top_p = s->top_p,
                          .floor = s->min_p > 0 ? s->temperature * logf(s->min_p) : -INFINITY,
                          .repetition = s->repetition_penalty,
                          .presence = s->presence_penalty,
                          .frequency = s->frequency_penalty,
                          .logprobs = s->logprobs,
                          .seen = row * MAX_SEEN,
                          .n_seen = a->n_seen,
                          .bias = row * MAX_BIAS,
                          .n_bias = s->n_bias,
                          .mask = a->masked ? row * WORDS : -1};
}

/* The rows of the batch in the given order, `n` of them real. */
static void run(const batch *b, const int *order, int n, gpu_choice *choices)
{
    gpu_counts counts = {.n_logit_rows = n};
    gpu_rows rows = {.counts = rig_device_copy(&counts, sizeof(counts))};
    size_t bytes = (size_t)(ROWS * b->ld) * sizeof(float);
    float *logits = rig_host(bytes), *after = rig_host(bytes);
    gpu_sampling *how = rig_host(ROWS * sizeof(*how));
    gpu_seen *seen = rig_host(ROWS * MAX_SEEN * sizeof(*seen));
    gpu_bias *bias = rig_host(ROWS * MAX_BIAS * sizeof(*bias));
    uint32_t *masks = rig_host(ROWS * WORDS * sizeof(*masks));
    gpu_sample op = {.ld = b->ld, .vocab = b->vocab};

    memset(logits, 0xff, bytes);
    memset(how, 0xff, ROWS * sizeof(*how));
    for (int i = 0; i < n; i++) {
        const ask *a = &b->rows[order[i]];

        memcpy(logits + i * b->ld, b->logits + order[i] * b->ld, (size_t)b->vocab * sizeof(float));
        lower(a, i, &how[i]);
        memcpy(seen + i * MAX_SEEN, a->seen, sizeof(a->seen));
        for (int j = 0; j < a->how.n_bias; j++)
            bias[i * MAX_BIAS + j] = (gpu_bias){a->bias[j].token, a->bias[j].bias};
        memcpy(masks + i * WORDS, a->mask, sizeof(a->mask));
    }
    op.logits = rig_device_copy(logits, bytes);
    op.edited = rig_device(bytes);
    op.how = rig_device_copy(how, ROWS * sizeof(*how));
    op.seen = rig_device_copy(seen, ROWS * MAX_SEEN * sizeof(*seen));
    op.bias = rig_device_copy(bias, ROWS * MAX_BIAS * sizeof(*bias));
    op.masks = rig_device_copy(masks, ROWS * WORDS * sizeof(*masks));
    op.choices = rig_device(ROWS * sizeof(*choices));
    GPU_OK(gpu_sample_run(&rows, &op, ROWS, rig_stream()));
    rig_fetch(choices, op.choices, ROWS * sizeof(*choices));
    rig_fetch(after, op.logits, bytes);
    assert_memory_equal(after, logits, bytes);
    for (int i = n; i < ROWS; i++)
        assert_int_equal(choices[i].status & choices[i].token, -1); /* poison */
}

static void run_all(const batch *b, gpu_choice *choices)
{
    int order[ROWS];

    for (int i = 0; i < ROWS; i++)
        order[i] = i;
    run(b, order, ROWS, choices);
}

/* -- the engine's -------------------------------------------------------------------------------
 */

/* Its sampler knows no masks: it gets logits with what they leave. */
static ol_code choose(const batch *b, int row, ol_choice *choice, ol_error *err)
{
    const ask *a = &b->rows[row];
    size_t bytes = (size_t)b->vocab * sizeof(float);
    float *logits = rig_host(bytes);
    ol_sampler_scratch *scratch = NULL;
    ol_sampler *sampler = NULL;
    ol_code code;

    memcpy(logits, b->logits + row * b->ld, bytes);
    for (int i = 0; a->masked && i < b->vocab; i++)
        if (!(a->mask[i / 32] >> (i % 32) & 1))
            logits[i] = -INFINITY;
    assert_int_equal(ol_sampling_check(&a->how, b->vocab, err), OL_OK);
    assert_int_equal(ol_sampler_scratch_create(b->vocab, &scratch, err), OL_OK);
    assert_int_equal(ol_sampler_create(&a->how, b->vocab, &sampler, err), OL_OK);
    for (int i = 0; i < a->n_seen; i++) {
        assert_int_equal(ol_sampler_see_prompt(sampler, &a->seen[i].token, 1, err), OL_OK);
        for (int j = 0; j < a->seen[i].in_output; j++)
            assert_int_equal(ol_sampler_see_output(sampler, a->seen[i].token, err), OL_OK);
    }
    code = ol_sampler_choose(sampler, scratch, logits, a->index, choice, err);
    ol_sampler_free(sampler);
    ol_sampler_scratch_free(scratch);
    return code;
}

static void check_logprobs(const batch *b, int row, const gpu_choice *got)
{
    const ask *a = &b->rows[row];
    const float *logits = b->logits + row * b->ld;
    ol_token_logprob top[OL_MAX_LOGPROBS];

    assert_int_equal(got->n_alternatives, a->how.logprobs < b->vocab ? a->how.logprobs : b->vocab);
    assert_true(fabsf(got->logprob - ol_logprob_of(logits, b->vocab, got->token)) < 1e-4f);
    ol_logprob_top(logits, b->vocab, got->n_alternatives, top);
    for (int i = 0; i < got->n_alternatives; i++) {
        assert_int_equal(got->alternatives[i].token, top[i].token);
        assert_true(got->alternatives[i].bias == top[i].logprob ||
                    fabsf(got->alternatives[i].bias - top[i].logprob) < 1e-4f);
    }
}

static void check(const batch *b, const gpu_choice *choices)
{
    for (int r = 0; r < ROWS; r++) {
        const ol_sampling *s = &b->rows[r].how;
        ol_choice want;
        ol_error err;
        ol_code code = choose(b, r, &want, &err);

        assert_int_equal(choices[r].status, code == OL_OK        ? GPU_CHOSEN
                                            : code == OL_INVALID ? GPU_NONE_ALLOWED
                                                                 : GPU_NOT_A_NUMBER);
        if (code != OL_OK)
            continue;
        if (choices[r].token != want.token)
            fail_msg("row %d of %d: token %d, not %d (temperature %g, top_k %d, top_p %g, "
                     "min_p %g)",
                     r, b->vocab, choices[r].token, want.token, (double)s->temperature, s->top_k,
                     (double)s->top_p, (double)s->min_p);
        if (s->logprobs >= 0)
            check_logprobs(b, r, &choices[r]);
    }
}

/* -- making
 * ----------------------------------------------------------------------------------------- */

/* Logits of about `scale`, in steps of `grain` (0: none): equal ones then. */
static batch *make_batch(int vocab, double scale, double grain)
{
    batch *b = rig_host(sizeof(*b));

    b->vocab = vocab;
    b->ld = (vocab + GPU_PAD - 1) / GPU_PAD * GPU_PAD;
    b->logits = rig_host((size_t)(ROWS * b->ld) * sizeof(float));
    for (int i = 0; i < ROWS * b->ld; i++) {
        double v = scale * (rig_uniform() + rig_uniform() + rig_uniform());

        b->logits[i] = (float)(grain > 0 ? floor(v / grain) * grain : v);
    }
    for (int r = 0; r < ROWS; r++) {
        b->rows[r].how = ol_sampling_default();
        b->rows[r].how.seed = rig_next();
        b->rows[r].how.temperature = (float)(1 + 0.8 * rig_uniform());
        b->rows[r].index = rig_below(1000);
    }
    return b;
}

/* Some of everything. */
static void complicate(ask *a, int vocab)
{
    int token = rig_below(vocab);

    a->how.top_k = rig_below(2) ? 1 + rig_below(vocab) : 0;
    a->how.top_p = rig_below(2) ? (float)(0.5 + 0.5 * rig_uniform()) : 1;
    a->how.min_p = rig_below(2) ? (float)(0.05 + 0.05 * rig_uniform()) : 0;
    a->how.logprobs = rig_below(OL_MAX_LOGPROBS + 2) - 1;
    if (rig_below(2)) {
        a->how.repetition_penalty = 1.3f;
        a->how.presence_penalty = 2;
        a->how.frequency_penalty = -0.7f;
        a->n_seen = MAX_SEEN < vocab ? MAX_SEEN : vocab;
        for (int i = 0; i < a->n_seen; i++) /* each once */
            a->seen[i] = (gpu_seen){(token + i) % vocab, rig_below(3)};
    }
    a->how.n_bias = rig_below(MAX_BIAS);
    for (int i = 0; i < a->how.n_bias; i++)
        a->bias[i] = (ol_logit_bias){i % 3 ? rig_below(vocab) : token, (float)(4 * rig_uniform())};
    a->how.bias = a->bias;
    a->masked = rig_below(2);
    for (int i = 0; i < WORDS; i++)
        a->mask[i] = (uint32_t)rig_next() | 1;
}

/* -- the tests
 * ----------------------------------------------------------------------------------------- */

static void draws_as_the_engine(void **state)
{
    static const int vocabs[] = {1, 5, 33, 500, 1027, 3000};

    (void)state;
    for (size_t i = 0; i < sizeof(vocabs) / sizeof(vocabs[0]); i++)
        for (int cut = 0; cut < 3; cut++) {
            batch *b = make_batch(vocabs[i], cut ? 6 : 3, 0);
            gpu_choice choices[ROWS];

            for (int r = 0; r < ROWS; r++)
                if (cut == 1)
                    b->rows[r].how.top_p = (float)(0.55 + 0.45 * rig_uniform());
                else if (cut == 2)
                    b->rows[r].how.top_k = r < 2 ? 1 + r : 1 + rig_below(60);
            b->rows[3].how.temperature = cut == 1 ? 0 : 30;
            b->rows[4].how.temperature = 1e-38f; /* its inverse is more than a float can be */
            run_all(b, choices);
            check(b, choices);
            rig_free_all();
        }
}

static void obeys_everything_at_once(void **state)
{
    (void)state;
    for (int round = 0; round < 20; round++) {
        batch *b = make_batch(round % 4 ? 1 + rig_below(50) : 300 + rig_below(1200), 2, 0);
        gpu_choice choices[ROWS];

        for (int r = 0; r < ROWS; r++)
            complicate(&b->rows[r], b->vocab);
        run_all(b, choices);
        check(b, choices);
        rig_free_all();
    }
}

/* More candidates than a round holds, and more equal ones: ids decide. */
static void cuts_far_down(void **state)
{
    (void)state;
    for (int round = 0; round < 5; round++) {
        batch *b = make_batch(2900, round == 4 ? 0 : 0.3, round % 2 ? 0.5 : 0);
        gpu_choice choices[ROWS];

        for (int r = 0; r < ROWS; r++) {
            b->rows[r].how.top_p = r % 2 ? 0.95f : 1;
            b->rows[r].how.top_k = r < 4 ? 700 * (r + 1) - 50 : 0;
            b->rows[r].how.logprobs = 3;
        }
        run_all(b, choices);
        check(b, choices);
        rig_free_all();
    }
}

static void greedy_takes_the_first_of_the_best(void **state)
{
    batch *b = make_batch(700, 2, 1);
    gpu_choice choices[ROWS];

    (void)state;
    for (int r = 0; r < ROWS; r++) {
        b->rows[r].how.temperature = r % 2 ? 0 : 0.7f;
        b->rows[r].how.top_k = r % 2 ? 0 : 1;
        b->rows[r].how.logprobs = OL_MAX_LOGPROBS;
    }
    b->logits[5 * b->ld + 3] = -0.0f; /* as good as 0 */
    run_all(b, choices);
    check(b, choices);
    rig_free_all();
}

static void says_what_is_wrong(void **state)
{
    batch *b = make_batch(200, 2, 0);
    gpu_choice choices[ROWS];

    (void)state;
    b->logits[7] = NAN;
    b->logits[b->ld + 150] = -NAN;
    b->logits[2 * b->ld + 199] = INFINITY;
    b->rows[2].how.temperature = 0;
    for (int i = 0; i < b->vocab; i++)
        b->logits[3 * b->ld + i] = -INFINITY;
    b->rows[4].masked = true;
    for (int i = 0; i < b->vocab; i += 2)
        b->logits[5 * b->ld + i] = -INFINITY;
    b->rows[5].how.logprobs = 20;
    run_all(b, choices);
    assert_int_equal(choices[0].status, GPU_NOT_A_NUMBER);
    assert_int_equal(choices[4].status, GPU_NONE_ALLOWED);
    check(b, choices);
    rig_free_all();
}

/* A row's choice does not depend on the others (P6). */
static void rows_stand_alone(void **state)
{
    batch *b = make_batch(1500, 4, 0);
    gpu_choice choices[ROWS], again[ROWS];
    int order[] = {4, 2, 5, 0};

    (void)state;
    for (int r = 0; r < ROWS; r++)
        complicate(&b->rows[r], b->vocab);
    run_all(b, choices);
    run(b, order, 4, again);
    for (int i = 0; i < 4; i++) {
        const gpu_choice *was = &choices[order[i]];

        assert_memory_equal(&again[i], was, offsetof(gpu_choice, alternatives));
        assert_memory_equal(again[i].alternatives, was->alternatives,
                            (size_t)was->n_alternatives * sizeof(gpu_bias));
    }
    rig_free_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_as_the_engine), cmocka_unit_test(obeys_everything_at_once),
        cmocka_unit_test(cuts_far_down),       cmocka_unit_test(greedy_takes_the_first_of_the_best),
        cmocka_unit_test(says_what_is_wrong),  cmocka_unit_test(rows_stand_alone),
    };
    int failed = 0;

    rig_seed();
#ifdef OL_SIMT
    for (unsigned order = 1; order < 3; order++) { /* in which threads take turns */
        simt_settings.seed = order;
        failed += cmocka_run_group_tests(tests, NULL, NULL);
    }
#else
    failed = cmocka_run_group_tests(tests, NULL, NULL);
#endif
    return failed;
}
