/* test_sample.c: the device's choice of a token against the engine's sampler. */
#include "gpu_rig.h"

#include "engine/choose.h"

#include <math.h>

#define ROWS 6
#define MAX_SEEN 40
#define MAX_BIAS 8
#define MAX_VOCAB 8192
#define WORDS (MAX_VOCAB / 32)

/* What a row asks for, and the lists. */
typedef struct ask {
    ol_pick how;
    ol_logit_bias bias[MAX_BIAS];
    ol_seen_token seen[MAX_SEEN];
    uint32_t mask[WORDS];
} ask;

typedef struct batch {
    int vocab, ld;
    float *logits; /* [ROWS][ld] */
    ask rows[ROWS];
} batch;

/* -- the device's ----------------------------------------------------------------------------- */

/* Its pick, of device memory. */
static ol_pick lower(const ask *a)
{
    ol_pick how = a->how;

    how.seen = rig_device_copy(a->seen, sizeof(a->seen));
    how.bias = rig_device_copy(a->bias, sizeof(a->bias));
    how.mask = rig_device_copy(a->mask, sizeof(a->mask));
    return how;
}

/* The rows of the batch in the given order, `n` of them real. */
static void run(const batch *b, const int *order, int n, ol_choice *choices)
{
    gpu_counts counts = {.n_logit_rows = n};
    gpu_rows rows = {.counts = rig_device_copy(&counts, sizeof(counts))};
    size_t bytes = (size_t)(ROWS * b->ld) * sizeof(float);
    float *logits = rig_host(bytes), *after = rig_host(bytes);
    ol_pick *picks = rig_host(ROWS * sizeof(*picks));
    gpu_sample op = {.ld = b->ld, .vocab = b->vocab};

    memset(logits, 0xff, bytes);
    memset((void *)picks, 0xff, ROWS * sizeof(*picks));
    for (int i = 0; i < n; i++) {
        memcpy(logits + i * b->ld, b->logits + order[i] * b->ld, (size_t)b->vocab * sizeof(float));
        picks[i] = lower(&b->rows[order[i]]);
    }
    op.logits = rig_device_copy(logits, bytes);
    op.edited = rig_device(bytes);
    op.picks = rig_device_copy(picks, ROWS * sizeof(*picks));
    op.choices = rig_device(ROWS * sizeof(*choices));
    GPU_OK(gpu_sample_run(&rows, &op, ROWS, rig_stream()));
    rig_fetch(choices, op.choices, ROWS * sizeof(*choices));
    rig_fetch(after, op.logits, bytes);
    assert_memory_equal(after, logits, bytes);
    for (int i = n; i < ROWS; i++)
        assert_int_equal(choices[i].status & choices[i].token, -1); /* poison */
}

static void run_all(const batch *b, ol_choice *choices)
{
    int order[ROWS];

    for (int i = 0; i < ROWS; i++)
        order[i] = i;
    run(b, order, ROWS, choices);
}

/* -- the engine's ------------------------------------------------------------------------------ */

static void check_logprobs(const ol_choice *got, const ol_choice *want)
{
    assert_int_equal(got->n_alternatives, want->n_alternatives);
    assert_true(got->logprob == want->logprob || fabsf(got->logprob - want->logprob) < 1e-4f);
    for (int i = 0; i < got->n_alternatives; i++) {
        const ol_token_logprob *g = &got->alternatives[i], *w = &want->alternatives[i];

        assert_int_equal(g->token, w->token);
        assert_true(g->logprob == w->logprob || fabsf(g->logprob - w->logprob) < 1e-4f);
    }
}

static void check(const batch *b, const ol_choice *choices)
{
    ol_chooser *chooser = NULL;
    ol_error err;

    assert_int_equal(ol_chooser_create(b->vocab, &chooser, &err), OL_OK);
    for (int r = 0; r < ROWS; r++) {
        const ol_pick *how = &b->rows[r].how;
        ol_choice want;

        ol_choose(chooser, how, b->logits + r * b->ld, &want);
        assert_int_equal(choices[r].status, want.status);
        if (want.status != OL_CHOICE_MADE)
            continue;
        if (choices[r].token != want.token)
            fail_msg("row %d of %d: token %d, not %d (temperature %g, top_k %d, top_p %g, "
                     "floor %g)",
                     r, b->vocab, choices[r].token, want.token, (double)how->temperature,
                     how->top_k, (double)how->top_p, (double)how->floor);
        if (how->logprobs >= 0)
            check_logprobs(&choices[r], &want);
        else
            assert_int_equal(choices[r].n_alternatives, 0);
    }
    ol_chooser_free(chooser);
}

/* -- making ------------------------------------------------------------------------------------ */

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
        ask *a = &b->rows[r];

        a->how = (ol_pick){.seed = rig_next(),
                           .index = rig_below(1000),
                           .seen = a->seen,
                           .bias = a->bias,
                           .mask = a->mask,
                           .given = -1,
                           .temperature = (float)(1 + 0.8 * rig_uniform()),
                           .top_p = 1,
                           .floor = -INFINITY,
                           .repetition = 1,
                           .logprobs = -1};
    }
    return b;
}

/* Some of everything. */
static void complicate(ask *a, int vocab)
{
    int token = rig_below(vocab);

    a->how.top_k = rig_below(2) ? 1 + rig_below(vocab) : 0;
    a->how.top_p = rig_below(2) ? (float)(0.5 + 0.5 * rig_uniform()) : 1;
    if (rig_below(2))
        a->how.floor = a->how.temperature * logf((float)(0.05 + 0.05 * rig_uniform()));
    a->how.given = rig_below(6) ? -1 : rig_below(vocab);
    a->how.logprobs = rig_below(OL_MAX_LOGPROBS + 2) - 1;
    if (rig_below(2)) {
        a->how.repetition = 1.3f;
        a->how.presence = 2;
        a->how.frequency = -0.7f;
        a->how.n_seen = MAX_SEEN < vocab ? MAX_SEEN : vocab;
        for (int i = 0; i < a->how.n_seen; i++) /* each once */
            a->seen[i] = (ol_seen_token){(token + i) % vocab, rig_below(3)};
    }
    a->how.n_bias = rig_below(MAX_BIAS);
    for (int i = 0; i < a->how.n_bias; i++)
        a->bias[i] = (ol_logit_bias){i % 3 ? rig_below(vocab) : token, (float)(4 * rig_uniform())};
    a->how.n_mask = rig_below(2) ? (vocab + 31) / 32 : 0;
    for (int i = 0; i < WORDS; i++)
        a->mask[i] = (uint32_t)rig_next() | 1;
}

/* -- the tests --------------------------------------------------------------------------------- */

static void draws_as_the_engine(void **state)
{
    static const int vocabs[] = {1, 5, 33, 500, 1027, 3000};

    (void)state;
    for (size_t i = 0; i < sizeof(vocabs) / sizeof(vocabs[0]); i++)
        for (int cut = 0; cut < 3; cut++) {
            batch *b = make_batch(vocabs[i], cut ? 6 : 3, 0);
            ol_choice choices[ROWS];

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
        ol_choice choices[ROWS];

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
        ol_choice choices[ROWS];

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
    ol_choice choices[ROWS];

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
    ol_choice choices[ROWS];

    (void)state;
    b->logits[7] = NAN;
    b->logits[b->ld + 150] = -NAN;
    b->logits[2 * b->ld + 199] = INFINITY;
    b->rows[2].how.temperature = 0;
    for (int i = 0; i < b->vocab; i++)
        b->logits[3 * b->ld + i] = -INFINITY;
    b->rows[4].how.n_mask = (b->vocab + 31) / 32;
    for (int i = 0; i < b->vocab; i += 2)
        b->logits[5 * b->ld + i] = -INFINITY;
    b->rows[5].how.logprobs = 20;
    run_all(b, choices);
    assert_int_equal(choices[0].status, OL_CHOICE_NO_NUMBER);
    assert_int_equal(choices[4].status, OL_CHOICE_NONE_ALLOWED);
    check(b, choices);
    rig_free_all();
}

/* A row's choice does not depend on the others (P6). */
static void rows_stand_alone(void **state)
{
    batch *b = make_batch(1500, 4, 0);
    ol_choice choices[ROWS], again[ROWS];
    int order[] = {4, 2, 5, 0};

    (void)state;
    for (int r = 0; r < ROWS; r++)
        complicate(&b->rows[r], b->vocab);
    run_all(b, choices);
    run(b, order, 4, again);
    for (int i = 0; i < 4; i++) {
        const ol_choice *was = &choices[order[i]];

        assert_memory_equal(&again[i], was, offsetof(ol_choice, alternatives));
        assert_memory_equal(again[i].alternatives, was->alternatives,
                            (size_t)was->n_alternatives * sizeof(ol_token_logprob));
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

    return RIG_RUN_IN_ORDERS(tests);
}
