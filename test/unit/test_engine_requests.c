/* test_engine_requests.c: requests through engine.h: text and tokens, ends of every kind,
 * scoring, refusals, cancelling. */
#include "engine_util.h"

#include <math.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static const int32_t prompt[] = {1, 195, 123, 41, 77, 20, 99, 5};
#define N_PROMPT ((int)(sizeof(prompt) / sizeof(prompt[0])))

static ol_engine *engine;
static ol_error err;

static int open_default(void **state)
{
    ol_engine_options options;

    (void)state;
    if (access(golden_path("llama"), F_OK) != 0)
        return 0;
    options = util_options(golden_path("llama"));
    engine = util_open(&options);
    return 0;
}

static int close_default(void **state)
{
    (void)state;
    ol_engine_close(engine);
    engine = NULL;
    return 0;
}

static void need_engine(void)
{
    need_path(golden_path("llama"));
    assert_non_null(engine);
}

/* Runs one request alone; tag 0. */
static util_result run_one(ol_engine *e, const ol_request *q)
{
    util_result r = {0};

    util_submit(e, q);
    util_run(e, &r, 1);
    assert_true(r.done || r.failed);
    util_expect_idle(e);
    return r;
}

/* Adapter `a` of the model with another alpha: other weights in all but name. */
static ol_digest put_with_alpha(ol_engine *e, int alpha)
{
    ol_buf weights, config;
    ol_adapter_facts facts;
    ol_digest digest;

    util_make_adapter("llama", "a", alpha, &weights, &config, &digest);
    must(ol_engine_adapter_put(e, &digest, weights.data, weights.len, (const char *)config.data,
                               config.len, &facts, &err),
         &err);
    ol_buf_free(&weights);
    ol_buf_free(&config);
    return digest;
}

static util_result run_done(ol_engine *e, const ol_request *q)
{
    util_result r = run_one(e, q);

    if (r.failed)
        must(r.error.code, &r.error);
    return r;
}

static void refuse(ol_engine *e, const ol_request *q, ol_code code, const char *word)
{
    must_fail(ol_engine_submit(e, q, &err), code, word, &err);
    util_expect_idle(e);
}

static ol_text text_of(const char *s)
{
    return (ol_text){s, strlen(s)};
}

static ol_request text_request(const char *text, int max_tokens)
{
    ol_request q = util_request(0, NULL, 0, max_tokens);

    q.prompt = text_of(text);
    return q;
}

/* -- text ------------------------------------------------------------------------------ */

static void test_text_is_the_tokens(void **state)
{
    ol_request q = text_request("Hello there", 40);
    util_result r;
    int32_t *ids;
    size_t n, len;
    char *text;

    (void)state;
    need_engine();
    r = run_done(engine, &q);
    must(ol_engine_tokenize(engine, "Hello there", 11, true, false, &ids, &n, &err), &err);
    assert_int_equal(r.prompt_tokens, n);
    free(ids);
    assert_int_equal(r.n, 40);
    assert_int_equal(r.completion_tokens, 40);
    assert_int_equal(r.finish, OL_FINISH_LENGTH);
    must(ol_engine_detokenize(engine, r.tokens, (size_t)r.n, true, &text, &len, &err), &err);
    assert_int_equal(r.text.len, len);
    assert_memory_equal(r.text.data, text, len);
    free(text);
    util_free(&r, 1);
}

static void test_stop_string(void **state)
{
    ol_request q = text_request("Hello there", 60);
    util_result whole, cut;
    char stop[8] = {0};
    ol_text stops[2];
    size_t at = 20;

    (void)state;
    need_engine();
    whole = run_done(engine, &q);
    assert_true(whole.text.len > at + 5);
    while ((whole.text.data[at] & 0xC0) == 0x80) /* begin at a character */
        at++;
    memcpy(stop, whole.text.data + at, 5);
    stops[0] = text_of("never said");
    stops[1] = text_of(stop);
    q.sampling.stops = stops;
    q.sampling.n_stops = 2;
    cut = run_done(engine, &q);
    assert_int_equal(cut.finish, OL_FINISH_STOP);
    at = (size_t)((const uint8_t *)memmem(whole.text.data, whole.text.len, stop, 5) -
                  whole.text.data);
    assert_int_equal(cut.text.len, at);
    assert_memory_equal(cut.text.data, whole.text.data, at);
    assert_true(cut.n < whole.n);
    assert_memory_equal(cut.tokens, whole.tokens, (size_t)cut.n * sizeof(int32_t));
    util_free(&whole, 1);
    util_free(&cut, 1);
}

/* What might have begun a stop string comes with DONE. */
static void test_held_back_text(void **state)
{
    ol_request q = text_request("Hello there", 30);
    util_result plain, held;
    char stop[64];
    ol_text stops[1];

    (void)state;
    need_engine();
    plain = run_done(engine, &q);
    assert_true(plain.text.len > 12);
    snprintf(stop, sizeof(stop), "%.9s and more that never comes",
             (const char *)plain.text.data + plain.text.len - 9);
    stops[0] = text_of(stop);
    q.sampling.stops = stops;
    q.sampling.n_stops = 1;
    held = run_done(engine, &q);
    assert_int_equal(held.finish, OL_FINISH_LENGTH);
    assert_int_equal(held.text.len, plain.text.len);
    assert_memory_equal(held.text.data, plain.text.data, plain.text.len);
    util_free(&plain, 1);
    util_free(&held, 1);
}

/* The same text, told at once; stop strings included. */
static void test_quiet(void **state)
{
    static const ol_text stop = {" ", 1};
    ol_request q = text_request("Hello there", 30);

    (void)state;
    need_engine();
    for (int stops = 0; stops <= 1; stops++) {
        util_result told, quiet;

        q.sampling.stops = &stop;
        q.sampling.n_stops = stops;
        q.quiet = false;
        told = run_done(engine, &q);
        q.quiet = true;
        quiet = run_done(engine, &q);
        assert_int_equal(quiet.n, 0); /* no TOKEN events */
        assert_int_equal(quiet.completion_tokens, told.completion_tokens);
        assert_int_equal(quiet.finish, told.finish);
        assert_int_equal(quiet.text.len, told.text.len);
        assert_memory_equal(quiet.text.data, told.text.data, told.text.len);
        util_free(&told, 1);
        util_free(&quiet, 1);
    }
    q.sampling.logprobs = 0; /* who wants them wants events */
    q.sampling.n_stops = 0;
    util_result r = run_done(engine, &q);
    assert_int_equal(r.n, 30);
    util_free(&r, 1);
}

/* -- ends --------------------------------------------------------------------------------- */

static void test_eos(void **state)
{
    ol_logit_bias bias = {2, 1000.0f}; /* </s> */
    ol_request q = util_request(0, prompt, N_PROMPT, 10);
    util_result r;

    (void)state;
    need_engine();
    q.sampling.bias = &bias;
    q.sampling.n_bias = 1;
    q.sampling.ignore_eos = false;
    r = run_done(engine, &q);
    assert_int_equal(r.finish, OL_FINISH_EOS);
    assert_int_equal(r.n, 0);
    assert_int_equal(r.completion_tokens, 0);
    util_free(&r, 1);
    q.sampling.ignore_eos = true;
    r = run_done(engine, &q);
    assert_int_equal(r.finish, OL_FINISH_LENGTH);
    assert_int_equal(r.n, 10);
    assert_int_equal(r.tokens[9], 2);
    assert_int_equal(r.text.len, 0); /* a special token has no text */
    util_free(&r, 1);
}

static void test_no_output_wanted(void **state)
{
    ol_request q = util_request(0, prompt, N_PROMPT, 0);
    util_result r;

    (void)state;
    need_engine();
    r = run_done(engine, &q);
    assert_int_equal(r.finish, OL_FINISH_LENGTH);
    assert_int_equal(r.n, 0);
    assert_int_equal(r.prompt_tokens, N_PROMPT);
    util_free(&r, 1);
}

static void test_context_ends(void **state)
{
    ol_engine_options options;
    ol_engine *small;
    ol_engine_info info;
    int32_t ids[32];
    ol_request q;
    util_result r;

    (void)state;
    need_path(golden_path("llama"));
    for (int i = 0; i < 32; i++)
        ids[i] = 10 + i;
    options = util_options(golden_path("llama"));
    options.context = 32;
    small = util_open(&options);
    ol_engine_info_get(small, &info);
    assert_int_equal(info.context, 32);
    q = util_request(0, ids, 20, 1000);
    r = run_done(small, &q);
    assert_int_equal(r.finish, OL_FINISH_LENGTH);
    assert_int_equal(r.n, 12);
    util_free(&r, 1);
    q = util_request(0, ids, 31, 1000);
    r = run_done(small, &q);
    assert_int_equal(r.n, 1);
    util_free(&r, 1);
    q = util_request(0, ids, 32, 1);
    refuse(small, &q, OL_LIMIT, "32");
    q = util_request(0, ids, 32, 0);
    r = run_done(small, &q);
    assert_int_equal(r.n, 0);
    util_free(&r, 1);
    ol_engine_close(small);
}

/* A KV cache smaller than the context: what can never fit is refused at once. */
static void test_context_of_the_kv_cache(void **state)
{
    ol_engine_options options;
    ol_engine_info info;
    ol_engine *small;
    int32_t ids[64];
    ol_request q;
    util_result r;

    (void)state;
    need_path(golden_path("llama"));
    for (int i = 0; i < 64; i++)
        ids[i] = 10 + i;
    options = util_options(golden_path("llama"));
    options.kv_bytes = 2 * 2 * 16 * 64 * 4 * 3; /* layers, k and v, tokens, width, float, pages */
    small = util_open(&options);
    ol_engine_info_get(small, &info);
    assert_in_range(info.kv_pages, 1, 3);
    assert_int_equal(info.context, info.kv_pages * 16);
    q = util_request(0, ids, info.context, 1);
    refuse(small, &q, OL_LIMIT, "KV cache");
    q = util_request(0, ids, 4, 10000);
    r = run_done(small, &q);
    assert_int_equal(r.n, info.context - 4);
    util_free(&r, 1);
    ol_engine_close(small);
    options.kv_bytes = 100;
    must_fail(ol_engine_open(&options, &small, &err), OL_LIMIT, "KV cache", &err);
}

/* -- scores and log-probabilities -------------------------------------------------------------- */

static double logprob_in(const float *row, int vocab, int token)
{
    double max = -INFINITY, sum = 0;

    for (int i = 0; i < vocab; i++)
        max = row[i] > max ? row[i] : max;
    for (int i = 0; i < vocab; i++)
        sum += exp(row[i] - max);
    return row[token] - max - log(sum);
}

static void test_score(void **state)
{
    static const int32_t completion[] = {7, 250, 33, 33, 150};
    int32_t all[N_PROMPT + 5];
    ol_request q = util_request(0, prompt, N_PROMPT, 0);
    ol_engine_info info;
    double sum = 0;
    util_result r;
    float *logits;

    (void)state;
    need_engine();
    ol_engine_info_get(engine, &info);
    memcpy(all, prompt, sizeof(prompt));
    memcpy(all + N_PROMPT, completion, sizeof(completion));
    logits = malloc((size_t)(N_PROMPT + 5) * (size_t)info.vocab * sizeof(float));
    must(ol_engine_logits(engine, all, N_PROMPT + 5, NULL, 0, logits, &err), &err);
    q.task = OL_TASK_SCORE;
    q.completion_tokens = completion;
    q.n_completion_tokens = 5;
    q.sampling.logprobs = 2;
    r = run_done(engine, &q);
    assert_int_equal(r.finish, OL_FINISH_SCORED);
    assert_int_equal(r.n, 5);
    for (int i = 0; i < 5; i++) {
        double want =
            logprob_in(logits + (N_PROMPT - 1 + i) * info.vocab, info.vocab, completion[i]);

        assert_int_equal(r.tokens[i], completion[i]);
        assert_true(fabs(r.logprobs[i] - want) < 1e-4);
        sum += want;
    }
    assert_true(fabs(r.logprob_sum - sum) < 1e-3);
    util_free(&r, 1);
    q.sampling.logprobs = -1; /* no TOKEN events */
    r = run_done(engine, &q);
    assert_int_equal(r.n, 0);
    assert_int_equal(r.completion_tokens, 5);
    assert_true(fabs(r.logprob_sum - sum) < 1e-3);
    util_free(&r, 1);
    free(logits);
}

static void test_score_of_text(void **state)
{
    ol_request q = text_request("Hello", 0);
    util_result r;

    (void)state;
    need_engine();
    q.task = OL_TASK_SCORE;
    q.sampling.logprobs = 0;
    q.completion = text_of(" there, all");
    r = run_done(engine, &q);
    assert_true(r.n > 0);
    assert_int_equal(r.text.len, q.completion.len);
    assert_memory_equal(r.text.data, q.completion.data, r.text.len);
    util_free(&r, 1);
    q.completion = text_of("");
    r = run_done(engine, &q);
    assert_int_equal(r.finish, OL_FINISH_SCORED);
    assert_int_equal(r.completion_tokens, 0);
    assert_true(r.logprob_sum == 0);
    util_free(&r, 1);
}

/* A prompt of one token, a completion of one: nothing but one row. */
static void test_smallest_score(void **state)
{
    static const int32_t one = 9;
    ol_request q = util_request(0, prompt, 1, 0);
    util_result r;

    (void)state;
    need_engine();
    q.task = OL_TASK_SCORE;
    q.completion_tokens = &one;
    q.n_completion_tokens = 1;
    r = run_done(engine, &q);
    assert_int_equal(r.completion_tokens, 1);
    assert_true(r.logprob_sum < 0);
    util_free(&r, 1);
    q.n_completion_tokens = 0;
    r = run_done(engine, &q);
    assert_int_equal(r.completion_tokens, 0);
    util_free(&r, 1);
}

static void test_generated_logprobs(void **state)
{
    ol_request q = util_request(0, prompt, N_PROMPT, 6);
    int32_t all[N_PROMPT + 6];
    ol_engine_info info;
    float *logits;
    util_result r;

    (void)state;
    need_engine();
    ol_engine_info_get(engine, &info);
    q.sampling.logprobs = 3;
    r = run_done(engine, &q);
    memcpy(all, prompt, sizeof(prompt));
    memcpy(all + N_PROMPT, r.tokens, 6 * sizeof(int32_t));
    logits = malloc((size_t)(N_PROMPT + 6) * (size_t)info.vocab * sizeof(float));
    must(ol_engine_logits(engine, all, N_PROMPT + 6, NULL, 0, logits, &err), &err);
    for (int i = 0; i < 6; i++)
        assert_true(fabs(r.logprobs[i] - logprob_in(logits + (N_PROMPT - 1 + i) * info.vocab,
                                                    info.vocab, r.tokens[i])) < 1e-4);
    free(logits);
    util_free(&r, 1);
}

/* -- refusals ------------------------------------------------------------------------------------
 */

static void test_refusals(void **state)
{
    static const int32_t bad[] = {1, 99999};
    ol_adapter_use uses[OL_MAX_REQUEST_ADAPTERS + 1] = {{.weight = 1}};
    ol_request good = util_request(0, prompt, N_PROMPT, 4), q;

    (void)state;
    need_engine();
    q = good;
    q.prompt_tokens = bad;
    q.n_prompt_tokens = 2;
    refuse(engine, &q, OL_INVALID, "99999");
    q.n_prompt_tokens = 0;
    refuse(engine, &q, OL_INVALID, "empty");
    q.n_prompt_tokens = -1;
    refuse(engine, &q, OL_INVALID, "-1");
    q = good;
    q.task = (ol_task)7;
    refuse(engine, &q, OL_INVALID, "task");
    q = good;
    q.sampling.temperature = NAN;
    refuse(engine, &q, OL_INVALID, "temperature");
    q = good;
    q.adapters = uses;
    q.n_adapters = OL_MAX_REQUEST_ADAPTERS + 1;
    refuse(engine, &q, OL_LIMIT, "at most");
    q.n_adapters = 2;
    refuse(engine, &q, OL_INVALID, "the same");
    q.n_adapters = 1;
    uses[0].weight = INFINITY;
    refuse(engine, &q, OL_INVALID, "weight");
}

static void test_tags(void **state)
{
    ol_request q = util_request(0, prompt, N_PROMPT, 4);
    util_result r = {0};

    (void)state;
    need_engine();
    util_submit(engine, &q);
    must_fail(ol_engine_submit(engine, &q, &err), OL_INVALID, "in use", &err);
    util_run(engine, &r, 1);
    assert_true(r.done);
    util_free(&r, 1);
    r = run_done(engine, &q); /* free again */
    util_free(&r, 1);
}

static void test_queue_is_bounded(void **state)
{
    ol_engine_options options;
    util_result r[6] = {0};
    ol_engine *small;
    ol_request q;

    (void)state;
    need_path(golden_path("llama"));
    options = util_options(golden_path("llama"));
    options.max_queued = 3;
    options.max_seqs = 1;
    small = util_open(&options);
    for (uint64_t i = 0; i < 3; i++) {
        q = util_request(i, prompt, N_PROMPT, 3);
        util_submit(small, &q);
    }
    q = util_request(3, prompt, N_PROMPT, 3);
    must_fail(ol_engine_submit(small, &q, &err), OL_BUSY, "waiting", &err);
    must(ol_engine_step(small, &err), &err); /* one of them runs now */
    util_submit(small, &q);
    util_run(small, r, 6);
    for (int i = 0; i < 4; i++)
        assert_int_equal(r[i].n, 3);
    util_free(r, 6);
    ol_engine_close(small);
}

/* -- cancelling
 * ---------------------------------------------------------------------------------------- */

/* -- beginnings that were computed before ----------------------------------------------------- */

static const int32_t *long_prompt(int n)
{
    static int32_t tokens[100];

    for (int i = 0; i < n; i++)
        tokens[i] = (i * 37 + 11) % 250;
    return tokens;
}

static void test_prefix_is_found(void **state)
{
    ol_request q;
    util_result first, again, longer;

    (void)state;
    need_engine();
    q = util_request(0, long_prompt(50), 50, 4);
    first = run_done(engine, &q);
    assert_int_equal(first.cached_tokens, 0);
    again = run_done(engine, &q);
    assert_int_equal(again.cached_tokens, 48); /* whole pages, and never the last token */
    assert_memory_equal(first.tokens, again.tokens, 4 * sizeof(int32_t));
    q = util_request(0, long_prompt(64), 64, 4);
    longer = run_done(engine, &q);
    assert_int_equal(longer.cached_tokens, 48);
    util_free(&longer, 1);
    longer = run_done(engine, &q);
    assert_int_equal(longer.cached_tokens, 48); /* of 64 tokens the last page holds the last */
    util_free(&first, 1);
    util_free(&again, 1);
    util_free(&longer, 1);
}

/* A score begins where the prompt ends: what it needs logits of is computed. */
static void test_prefix_of_score(void **state)
{
    ol_request q = {.task = OL_TASK_SCORE, .sampling = ol_sampling_default()};
    util_result first, again;

    (void)state;
    need_engine();
    q.prompt_tokens = long_prompt(60);
    q.n_prompt_tokens = 30;
    q.completion_tokens = long_prompt(60) + 30;
    q.n_completion_tokens = 30;
    first = run_done(engine, &q);
    again = run_done(engine, &q);
    assert_int_equal(again.cached_tokens, 16);
    assert_true(first.logprob_sum == again.logprob_sum);
    util_free(&first, 1);
    util_free(&again, 1);
}

/* The row of an adapter is replaced: the same id, other weights, the same prompt. */
static void test_new_weights_find_nothing(void **state)
{
    ol_engine_options options = util_options(golden_path("llama"));
    ol_adapter_use use = {.weight = 1};
    util_result old, new, fresh;
    ol_request q;
    ol_engine *other;

    (void)state;
    need_engine();
    q = util_request(0, long_prompt(50), 50, 8);
    q.adapters = &use;
    q.n_adapters = 1;
    q.sampling.logprobs = 0;
    use.digest = put_with_alpha(engine, 8);
    old = run_done(engine, &q);
    use.digest = put_with_alpha(engine, 64);
    new = run_done(engine, &q);
    assert_int_equal(new.cached_tokens, 0);
    other = util_open(&options);
    use.digest = put_with_alpha(other, 64);
    fresh = run_done(other, &q);
    assert_memory_equal(new.tokens, fresh.tokens, 8 * sizeof(int32_t));
    assert_memory_not_equal(new.logprobs, old.logprobs, 8 * sizeof(float));
    use.weight = 0.5f; /* nor does another weight of the same */
    util_free(&new, 1);
    new = run_done(other, &q);
    assert_int_equal(new.cached_tokens, 0);
    ol_engine_close(other);
    util_free(&old, 1);
    util_free(&new, 1);
    util_free(&fresh, 1);
}

/* -- time and place ------------------------------------------------------------------------------
 */

static void test_time_is_over(void **state)
{
    ol_request q = util_request(0, prompt, N_PROMPT, 240);
    util_result r = {0};

    (void)state;
    need_engine();
    q.timeout_ms = 1;
    util_submit(engine, &q);
    while (!r.failed) { /* each step takes some time */
        assert_false(r.done);
        must(ol_engine_step(engine, &err), &err);
        util_take(engine, &r, 1);
    }
    must_fail(r.error.code, OL_CANCELLED, "time is over", &r.error);
    util_expect_idle(engine);
    q.timeout_ms = 3600 * 1000;
    util_free(&r, 1);
    r = run_done(engine, &q);
    assert_int_equal(r.n, 240);
    util_free(&r, 1);
}

static void test_bad_place(void **state)
{
    ol_request q = util_request(0, prompt, N_PROMPT, 1);

    (void)state;
    need_engine();
    q.priority = OL_MAX_PRIORITY + 1;
    must_fail(ol_engine_submit(engine, &q, &err), OL_INVALID, "priority", &err);
    q.priority = 0;
    q.tenant_weight = (float)NAN;
    must_fail(ol_engine_submit(engine, &q, &err), OL_INVALID, "weight", &err);
    q.tenant_weight = -1;
    must_fail(ol_engine_submit(engine, &q, &err), OL_INVALID, "weight", &err);
    util_expect_idle(engine);
}

static void test_cancel(void **state)
{
    util_result r[3] = {0};
    ol_engine_info before, info;
    ol_event e;
    ol_request q;

    (void)state;
    need_engine();
    ol_engine_info_get(engine, &before);
    for (uint64_t i = 0; i < 3; i++) {
        q = util_request(i, prompt, N_PROMPT, 50);
        util_submit(engine, &q);
    }
    for (int i = 0; i < 5; i++)
        must(ol_engine_step(engine, &err), &err);
    ol_engine_cancel(engine, 1); /* with events of its own in the queue */
    ol_engine_cancel(engine, 77);
    ol_engine_info_get(engine, &info);
    assert_int_equal(info.running, 2);
    util_take(engine, r, 3);
    assert_int_equal(r[1].n, 0);
    assert_int_equal(r[0].n, 5);
    util_run(engine, r, 3);
    assert_true(r[0].done && !r[1].done && !r[1].failed && r[2].done);
    ol_engine_info_get(engine, &info);
    assert_int_equal(info.cancelled, before.cancelled + 1);
    util_free(r, 3);
    q = util_request(0, prompt, N_PROMPT, 50);
    util_submit(engine, &q);
    ol_engine_cancel(engine, 0); /* before its first step */
    assert_false(ol_engine_poll(engine, &e));
    util_expect_idle(engine);
}

/* The next USAGE event; those of other kinds pass. */
static bool take_usage(ol_event *e)
{
    while (ol_engine_poll(engine, e))
        if (e->kind == OL_EVENT_USAGE)
            return true;
    return false;
}

static void expect_digest(const ol_digest *digest, const ol_digest *salt, const int32_t *tokens,
                          int n)
{
    uint8_t bytes[OL_DIGEST_BYTES + 4 * 64];
    size_t len = OL_DIGEST_BYTES;
    ol_digest expected;

    memcpy(bytes, salt, OL_DIGEST_BYTES);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 4; k++)
            bytes[len++] = (uint8_t)((uint32_t)tokens[i] >> (8 * k));
    ol_sha256_of(bytes, len, &expected);
    assert_true(ol_digest_equal(digest, &expected));
}

static void test_usage_of_done(void **state)
{
    ol_request q = util_request(0, prompt, N_PROMPT, 6);
    util_result r;
    ol_event e;

    (void)state;
    need_engine();
    r = run_done(engine, &q);
    q.meter = (ol_text){"whose", 5};
    q.meter_salt.bytes[7] = 9;
    util_submit(engine, &q);
    while (ol_engine_busy(engine))
        must(ol_engine_step(engine, &err), &err);
    assert_true(take_usage(&e));
    assert_int_equal(e.outcome, OL_OUTCOME_DONE);
    assert_int_equal(e.prompt_tokens, N_PROMPT);
    assert_int_equal(e.completion_tokens, 6);
    assert_int_equal(e.text.len, 5);
    assert_memory_equal(e.text.data, "whose", 5);
    expect_digest(&e.digest, &q.meter_salt, r.tokens, r.n);
    assert_true(ol_engine_poll(engine, &e)); /* the answer's end comes after it */
    assert_int_equal(e.kind, OL_EVENT_DONE);
    assert_false(ol_engine_poll(engine, &e));
    util_free(&r, 1);
}

static void test_usage_of_cancelled(void **state)
{
    ol_request q = util_request(1, prompt, N_PROMPT, 50);
    ol_event e;

    (void)state;
    need_engine();
    q.meter = (ol_text){"whose", 5};
    util_submit(engine, &q);
    ol_engine_cancel(engine, 1); /* before its first step: nothing was used */
    assert_true(ol_engine_poll(engine, &e));
    assert_int_equal(e.outcome, OL_OUTCOME_CANCELLED);
    assert_int_equal(e.prompt_tokens + e.completion_tokens, 0);
    assert_false(ol_engine_poll(engine, &e));
    util_submit(engine, &q);
    for (int i = 0; i < 5; i++)
        must(ol_engine_step(engine, &err), &err);
    ol_engine_cancel(engine, 1);
    assert_true(ol_engine_poll(engine, &e)); /* nothing else is told of it */
    assert_int_equal(e.kind, OL_EVENT_USAGE);
    assert_int_equal(e.outcome, OL_OUTCOME_CANCELLED);
    assert_int_equal(e.prompt_tokens, N_PROMPT);
    assert_int_equal(e.completion_tokens, 5);
    assert_false(ol_engine_poll(engine, &e));
    q.sampling.max_tokens = 2; /* ended, but its end not taken yet when the cancel comes */
    util_submit(engine, &q);
    while (ol_engine_busy(engine))
        must(ol_engine_step(engine, &err), &err);
    ol_engine_cancel(engine, 1);
    assert_true(ol_engine_poll(engine, &e));
    assert_int_equal(e.kind, OL_EVENT_USAGE);
    assert_int_equal(e.outcome, OL_OUTCOME_DONE);
    assert_false(ol_engine_poll(engine, &e));
    q.meter.len = 5;
    q.sampling.max_tokens = 50; /* told before it ends: at 8 tokens, and every 32 */
    util_submit(engine, &q);
    while (ol_engine_busy(engine))
        must(ol_engine_step(engine, &err), &err);
    for (int i = 0; i < 3; i++) {
        assert_true(take_usage(&e));
        assert_int_equal(e.outcome, i < 2 ? OL_OUTCOME_SO_FAR : OL_OUTCOME_DONE);
        assert_int_equal(e.completion_tokens, i == 0 ? 8 : i == 1 ? 40 : 50);
        assert_int_equal(e.prompt_tokens, N_PROMPT);
    }
    assert_false(take_usage(&e));
    q.meter.len = OL_MAX_METER_BYTES + 1;
    must_fail(ol_engine_submit(engine, &q, &err), OL_LIMIT, "meter", &err);
    util_expect_idle(engine);
}

static void test_close_with_work_left(void **state)
{
    ol_engine_options options;
    ol_engine *e;
    ol_request q;

    (void)state;
    need_path(golden_path("llama"));
    options = util_options(golden_path("llama"));
    options.max_seqs = 2;
    e = util_open(&options);
    for (uint64_t i = 0; i < 5; i++) {
        q = util_request(i, prompt, N_PROMPT, 50);
        util_submit(e, &q);
    }
    must(ol_engine_step(e, &err), &err);
    ol_engine_close(e);
}

/* -- a model without a tokenizer
 * --------------------------------------------------------------------------- */

static void link_into(const char *folder, const char *name)
{
    char from[4096], to[4096], *real;

    snprintf(from, sizeof(from), "llama/%s", name);
    real = realpath(golden_path(from), NULL);
    assert_non_null(real);
    snprintf(to, sizeof(to), "%s/%s", folder, name);
    assert_int_equal(symlink(real, to), 0);
    free(real);
}

static void test_no_tokenizer(void **state)
{
    static const char *const files[] = {"config.json", "model.safetensors"};
    const char *tmp = getenv("TMPDIR");
    char folder[1024], path[4096];
    ol_engine_options options;
    ol_text stop = text_of("x");
    ol_engine *bare;
    ol_request q;
    int32_t *ids;
    util_result r;
    size_t n;

    (void)state;
    need_path(golden_path("llama"));
    snprintf(folder, sizeof(folder), "%s/openlora-test-XXXXXX", tmp ? tmp : P_tmpdir);
    assert_non_null(mkdtemp(folder));
    for (int i = 0; i < 2; i++)
        link_into(folder, files[i]);
    options = util_options(folder);
    bare = util_open(&options);
    q = util_request(0, prompt, N_PROMPT, 5);
    r = run_done(bare, &q);
    assert_int_equal(r.n, 5);
    assert_int_equal(r.text.len, 0);
    util_free(&r, 1);
    q.sampling.stops = &stop;
    q.sampling.n_stops = 1;
    refuse(bare, &q, OL_UNSUPPORTED, "tokenizer");
    q = text_request("hello", 5);
    refuse(bare, &q, OL_UNSUPPORTED, "tokenizer");
    must_fail(ol_engine_tokenize(bare, "a", 1, true, false, &ids, &n, &err), OL_UNSUPPORTED,
              "tokenizer", &err);
    ol_engine_close(bare);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, files[i]);
        unlink(path);
    }
    rmdir(folder);
}

static void test_bad_options(void **state)
{
    ol_engine_options options;
    ol_engine *e;

    (void)state;
    need_path(golden_path("llama"));
    options = util_options(golden_path("llama"));
    options.page_tokens = 24;
    must_fail(ol_engine_open(&options, &e, &err), OL_INVALID, "power of two", &err);
    options.page_tokens = 0;
    options.device = "abacus";
    must_fail(ol_engine_open(&options, &e, &err), OL_INVALID, "abacus", &err);
    options.device = "cpu";
    options.max_seqs = -1;
    must_fail(ol_engine_open(&options, &e, &err), OL_INVALID, "max_seqs", &err);
    options.max_seqs = 0;
    options.kv_dtype = OL_Q8_0;
    must_fail(ol_engine_open(&options, &e, &err), OL_INVALID, "kv_dtype", &err);
    options.kv_dtype = -1;
    options.model_path = "/nonexistent";
    must_fail(ol_engine_open(&options, &e, &err), OL_NOT_FOUND, "nonexistent", &err);
    options.model_path = NULL;
    must_fail(ol_engine_open(&options, &e, &err), OL_INVALID, "model", &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_is_the_tokens),
        cmocka_unit_test(test_stop_string),
        cmocka_unit_test(test_held_back_text),
        cmocka_unit_test(test_quiet),
        cmocka_unit_test(test_eos),
        cmocka_unit_test(test_no_output_wanted),
        cmocka_unit_test(test_context_ends),
        cmocka_unit_test(test_context_of_the_kv_cache),
        cmocka_unit_test(test_score),
        cmocka_unit_test(test_score_of_text),
        cmocka_unit_test(test_smallest_score),
        cmocka_unit_test(test_generated_logprobs),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_tags),
        cmocka_unit_test(test_queue_is_bounded),
        cmocka_unit_test(test_prefix_is_found),
        cmocka_unit_test(test_prefix_of_score),
        cmocka_unit_test(test_new_weights_find_nothing),
        cmocka_unit_test(test_time_is_over),
        cmocka_unit_test(test_bad_place),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_usage_of_done),
        cmocka_unit_test(test_usage_of_cancelled),
        cmocka_unit_test(test_close_with_work_left),
        cmocka_unit_test(test_no_tokenizer),
        cmocka_unit_test(test_bad_options),
    };

    return cmocka_run_group_tests(tests, open_default, close_default);
}
