/*
 * test_engine_sampling.c: every way to choose a token, through engine.h: as asked for; the same
 * whether the device chooses or the engine does, from the same device's logits; the same bits
 * alone and in a batch. A device that does not choose (the CPU's) is checked by what was asked.
 */
#include "engine_util.h"

#include "engine/engine_internal.h"

#include <math.h>

enum { MOST = 16, N_PROMPT = 11, EOS = 2 };

static const int32_t prompt[N_PROMPT] = {1, 195, 123, 41, 77, 20, 99, 5, 41, 41, 77};

/* -- the requests ----------------------------------------------------------------------- */

enum ask {
    GREEDY,
    PLAIN,
    TOP_K,
    TOP_P,
    MIN_P,
    CUTS,
    REPETITION,
    PRESENCE,
    BIAS,
    FORBIDDEN,
    EOS_WANTED,
    LOGPROBS,
    STOPS,
    CHOICES,
    NOTHING,
    IMPOSSIBLE,
    SCORE,
    SCORE_TOP,
    N
};

/* What the output of CHOICES may be. */
static const int32_t choices[][4] = {{10, 20, 30, EOS}, {10, 25, EOS, -1}, {40, 41, 42, EOS}};

static void allow(uint32_t *mask, int32_t token)
{
    mask[token / 32] |= (uint32_t)1 << token % 32;
}

static void allow_choices(void *context, const int32_t *output, int n_output, uint32_t *mask)
{
    int *asked = context;

    (*asked)++;
    for (size_t i = 0; i < sizeof(choices) / sizeof(choices[0]); i++)
        if (n_output < 4 && choices[i][n_output] >= 0 &&
            memcmp(choices[i], output, (size_t)n_output * sizeof(int32_t)) == 0)
            allow(mask, choices[i][n_output]);
}

static void allow_nothing(void *context, const int32_t *output, int n_output, uint32_t *mask)
{
    (void)context;
    (void)output;
    if (n_output < 2)
        allow(mask, 33);
}

static int asked;
static const ol_constraint one_of = {allow_choices, &asked}, nothing = {allow_nothing, NULL};
static const ol_logit_bias bias[] = {{50, 19}, {51, -INFINITY}, {50, 0.5f}}, eos[] = {{EOS, 1000}};
static const ol_text stops[] = {{"never said", 10}, {"e", 1}};
static ol_logit_bias towards_stop = {0, 7}; /* the token "e" */

static void ask_sampling(ol_sampling *s, int ask)
{
    s->temperature = ask == GREEDY ? 0 : 1.1f;
    s->seed = 77 + (uint64_t)ask;
    s->top_k = ask == TOP_K ? 3 : ask == CUTS ? 40 : 0;
    s->top_p = ask == TOP_P ? 0.6f : ask == CUTS ? 0.9f : 1;
    s->min_p = ask == MIN_P ? 0.2f : ask == CUTS ? 0.01f : 0;
    s->repetition_penalty = ask == REPETITION || ask == CUTS ? 1.4f : 1;
    s->presence_penalty = ask == PRESENCE ? 1.5f : 0;
    s->frequency_penalty = ask == PRESENCE ? 0.7f : 0;
    s->logprobs = ask == LOGPROBS ? OL_MAX_LOGPROBS : ask == SCORE_TOP ? 3 : ask == SCORE ? -1 : 0;
    s->bias = ask == EOS_WANTED ? eos : ask == STOPS ? &towards_stop : bias;
    s->n_bias = ask == BIAS || ask == FORBIDDEN ? 3 : ask == EOS_WANTED || ask == STOPS ? 1 : 0;
    s->stops = stops;
    s->n_stops = ask == STOPS ? 2 : 0;
    s->ignore_eos = ask != EOS_WANTED && ask != CHOICES;
}

static ol_request request_for(int ask)
{
    static ol_logit_bias all[4096];
    ol_request q = util_request((uint64_t)ask, prompt, N_PROMPT, MOST);

    ask_sampling(&q.sampling, ask);
    if (ask == CHOICES)
        q.constraint = &one_of;
    if (ask == NOTHING)
        q.constraint = &nothing;
    if (ask == IMPOSSIBLE) { /* the vocabulary has 288 tokens */
        for (int i = 0; i < 288; i++)
            all[i] = (ol_logit_bias){i, -INFINITY};
        q.sampling.bias = all;
        q.sampling.n_bias = 288;
    }
    if (ask >= SCORE) {
        q.task = OL_TASK_SCORE;
        q.n_prompt_tokens = 3;
        q.completion_tokens = prompt + 3;
        q.n_completion_tokens = N_PROMPT - 3;
    }
    return q;
}

/* -- what came of them --------------------------------------------------------------------- */

typedef struct outcome {
    int32_t tokens[MOST];
    float logprobs[MOST];
    ol_token_logprob tops[MOST][OL_MAX_LOGPROBS];
    int n, n_tops;
    char text[512];
    size_t len;
    bool ended;
    ol_finish finish;
    int completion;
    double sum;
    ol_code code; /* FAILED */
    char message[256];
} outcome;

static void take_event(const ol_event *e, outcome *o)
{
    assert_false(o->ended);
    o->ended = e->kind != OL_EVENT_TOKEN;
    assert_true(o->len + e->text.len < sizeof(o->text));
    if (e->text.len)
        memcpy(o->text + o->len, e->text.data, e->text.len);
    o->len += e->text.len;
    if (e->kind == OL_EVENT_TOKEN) {
        assert_int_equal(e->index, o->n);
        o->tokens[o->n] = e->token;
        o->logprobs[o->n] = e->logprob;
        o->n_tops = e->n_alternatives;
        for (int i = 0; i < e->n_alternatives; i++)
            o->tops[o->n][i] = e->alternatives[i];
        o->n++;
    } else if (e->kind == OL_EVENT_DONE) {
        o->finish = e->finish;
        o->completion = e->completion_tokens;
        o->sum = e->logprob_sum;
    } else {
        o->code = e->error.code;
        strcpy(o->message, e->error.message);
    }
}

static void run(ol_engine *engine, outcome *outcomes)
{
    ol_error err;
    ol_event e;

    while (ol_engine_busy(engine)) {
        must(ol_engine_step(engine, &err), &err);
        while (ol_engine_poll(engine, &e))
            take_event(&e, &outcomes[e.tag]);
    }
}

static void run_together(ol_engine *engine, outcome *outcomes)
{
    memset(outcomes, 0, N * sizeof(*outcomes));
    for (int ask = 0; ask < N; ask++) {
        ol_request q = request_for(ask);

        util_submit(engine, &q);
    }
    run(engine, outcomes);
}

static ol_engine *open_engine(bool host_sampling)
{
    ol_engine_options options = util_options(golden_path("llama"));
    ol_engine *engine;
    ol_tokens e;
    ol_error err;

    options.host_sampling = host_sampling;
    options.no_prefix_cache = true;
    engine = util_open(&options);
    must(ol_engine_tokenize(engine, (ol_text){"e", 1}, false, false, &e, &err), &err);
    towards_stop.token = e.ids[e.n - 1];
    free(e.ids);
    return engine;
}

/* -- as asked for ------------------------------------------------------------------------------ */

static void check_ends(const outcome *o)
{
    static const ol_finish finishes[N] = {
        [GREEDY] = OL_FINISH_LENGTH,     [PLAIN] = OL_FINISH_LENGTH,
        [TOP_K] = OL_FINISH_LENGTH,      [TOP_P] = OL_FINISH_LENGTH,
        [MIN_P] = OL_FINISH_LENGTH,      [CUTS] = OL_FINISH_LENGTH,
        [BIAS] = OL_FINISH_LENGTH,       [FORBIDDEN] = OL_FINISH_LENGTH,
        [REPETITION] = OL_FINISH_LENGTH, [PRESENCE] = OL_FINISH_LENGTH,
        [EOS_WANTED] = OL_FINISH_EOS,    [LOGPROBS] = OL_FINISH_LENGTH,
        [STOPS] = OL_FINISH_STOP,        [CHOICES] = OL_FINISH_EOS,
        [SCORE] = OL_FINISH_SCORED,      [SCORE_TOP] = OL_FINISH_SCORED};

    for (int ask = 0; ask < N; ask++) {
        assert_true(o[ask].ended);
        if (ask == NOTHING || ask == IMPOSSIBLE) {
            assert_int_equal(o[ask].code, OL_INVALID);
            assert_non_null(strstr(o[ask].message, "no token may follow"));
            assert_int_equal(o[ask].n, ask == NOTHING ? 2 : 0);
        } else {
            assert_int_equal(o[ask].code, OL_OK);
            assert_int_equal(o[ask].finish, finishes[ask]);
        }
    }
}

static void check_asked(const outcome *o)
{
    int chosen = -1, liked = 0;

    check_ends(o);
    for (int i = 0; i < MOST; i++) {
        liked += o[BIAS].tokens[i] == 50;
        assert_true(o[BIAS].tokens[i] != 51 && o[FORBIDDEN].tokens[i] != 51);
    }
    assert_true(liked > MOST / 2);
    assert_null(memchr(o[STOPS].text, 'e', o[STOPS].len));
    assert_int_equal(o[EOS_WANTED].n, 0);
    assert_true(asked > 0);
    for (int i = 0; i < 3; i++)
        if (memcmp(choices[i], o[CHOICES].tokens, (size_t)o[CHOICES].n * sizeof(int32_t)) == 0)
            chosen = choices[i][o[CHOICES].n];
    assert_int_equal(chosen, EOS);
    assert_int_equal(o[LOGPROBS].n_tops, OL_MAX_LOGPROBS);
    assert_int_equal(o[SCORE_TOP].n, N_PROMPT - 3);
    assert_int_equal(o[SCORE_TOP].n_tops, 3);
    assert_int_equal(o[SCORE].completion, N_PROMPT - 3);
    assert_true(o[SCORE].sum < 0 && o[SCORE].sum == o[SCORE_TOP].sum);
    assert_memory_equal(o[SCORE_TOP].tokens, prompt + 3, (N_PROMPT - 3) * sizeof(int32_t));
}

/* -- the same ---------------------------------------------------------------------------------- */

static void compare(const outcome *a, const outcome *b, float tolerance)
{
    for (int ask = 0; ask < N; ask++) {
        const outcome *x = &a[ask], *y = &b[ask];

        if (x->n != y->n || memcmp(x->tokens, y->tokens, (size_t)x->n * sizeof(int32_t)) != 0)
            fail_msg("request %d has other tokens", ask);
        assert_int_equal(x->len, y->len);
        assert_memory_equal(x->text, y->text, x->len);
        assert_int_equal(x->finish, y->finish);
        assert_int_equal(x->code, y->code);
        assert_string_equal(x->message, y->message);
        assert_true(fabs(x->sum - y->sum) <= (double)tolerance * MOST);
        assert_int_equal(x->n_tops, y->n_tops);
        for (int i = 0; i < x->n; i++) {
            assert_true(fabsf(x->logprobs[i] - y->logprobs[i]) <= tolerance);
            for (int k = 0; k < x->n_tops; k++) {
                assert_int_equal(x->tops[i][k].token, y->tops[i][k].token);
                assert_true(fabsf(x->tops[i][k].logprob - y->tops[i][k].logprob) <= tolerance);
            }
        }
    }
}

/* -- the tests --------------------------------------------------------------------------------- */

static void test_device_and_host(void **state)
{
    static outcome device[N], host[N];
    ol_engine *engine;

    (void)state;
    need_path(golden_path("llama"));
    engine = open_engine(false);
    run_together(engine, device);
    check_asked(device);
    assert_int_equal(engine->device_chooses, util_on_cuda());
    assert_int_equal(engine->counters.device_choices > engine->counters.generated_tokens,
                     util_on_cuda());
    util_expect_idle(engine);
    ol_engine_close(engine);

    engine = open_engine(true);
    run_together(engine, host);
    assert_int_equal(engine->counters.device_choices, 0);
    ol_engine_close(engine);
    compare(device, host, 1e-4f);
}

/* Whatever shares its steps (P6). */
static void test_alone(void **state)
{
    static outcome together[N], alone[N];
    ol_engine *engine;

    (void)state;
    need_path(golden_path("llama"));
    engine = open_engine(false);
    run_together(engine, together);
    for (int ask = 0; ask < N; ask++) {
        ol_request q = request_for(ask);

        util_submit(engine, &q);
        run(engine, alone);
    }
    compare(together, alone, 0);
    ol_engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_and_host),
        cmocka_unit_test(test_alone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
