/* test_engine_queue.c: what is refused, waits, runs out of time, is cancelled or left; and what a
 * request is said to have used, whichever way it ends. */
#include "engine_requests.h"

#include <math.h>

/* -- refusals, the queue ----------------------------------------------------------------------- */

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

/* Requests come faster than steps: those that a step could let run do not wait. */
static void test_queue_is_bounded(void **state)
{
    ol_engine_options options;
    util_result r[8] = {0};
    ol_engine *small;
    ol_request q;

    (void)state;
    need_path(golden_path("llama"));
    options = util_options(golden_path("llama"));
    options.max_queued = 3;
    options.max_seqs = 2;
    small = util_open(&options);
    for (uint64_t i = 0; i < 5; i++) {
        q = util_request(i, prompt, N_PROMPT, 3 + (int)i);
        util_submit(small, &q);
    }
    q = util_request(5, prompt, N_PROMPT, 3);
    must_fail(ol_engine_submit(small, &q, &err), OL_BUSY, "waiting", &err);
    must(ol_engine_step(small, &err), &err); /* two of them run now, three wait as before */
    must_fail(ol_engine_submit(small, &q, &err), OL_BUSY, "At most 3 may, beside 2", &err);
    while (!r[0].done) {
        must(ol_engine_step(small, &err), &err);
        util_take(small, r, 8);
    }
    util_submit(small, &q);
    util_run(small, r, 8);
    for (int i = 0; i < 6; i++)
        assert_int_equal(r[i].n, i == 5 ? 3 : 3 + i);
    util_free(r, 8);
    ol_engine_close(small);
}

/* More slots than a step has rows: those that generate leave rows for prompts, so that a tenant
 * with nothing running need not wait until one of them has ended. */
static void test_steps_have_rows_for_prompts(void **state)
{
    enum { OTHERS = 40, STEPS = 40 };
    ol_engine_options options;
    util_result r[OTHERS + 1] = {0};
    ol_engine_info info;
    ol_request q;
    ol_engine *e;

    (void)state;
    need_path(golden_path("llama"));
    options = util_options(golden_path("llama"));
    options.step_tokens = 32;
    options.max_seqs = 64;
    e = util_open(&options);
    for (uint64_t tag = 0; tag < OTHERS; tag++) {
        q = util_request(tag, prompt, N_PROMPT, 200);
        util_submit(e, &q);
    }
    for (int i = 0; i < STEPS; i++)
        must(ol_engine_step(e, &err), &err);
    q = util_request(OTHERS, prompt, N_PROMPT, 4);
    q.tenant = 1;
    util_submit(e, &q);
    for (int i = 0; i < STEPS && !r[OTHERS].done; i++) {
        must(ol_engine_step(e, &err), &err);
        util_take(e, r, OTHERS + 1);
    }
    assert_true(r[OTHERS].done);
    ol_engine_info_get(e, &info);
    assert_int_equal(info.running, 27); /* 28, of which one is kept for newcomers */
    for (int i = 0; i < OTHERS; i++)
        assert_false(r[i].done);
    util_free(r, OTHERS + 1);
    ol_engine_close(e);
}

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

/* -- cancelling -------------------------------------------------------------------------------- */

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

/* -- usage ------------------------------------------------------------------------------------- */

/* The next USAGE event; those of other kinds pass. */
static bool take_usage(ol_engine *from, ol_event *e)
{
    while (ol_engine_poll(from, e))
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
    assert_true(take_usage(engine, &e));
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
    util_result r;
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
    q.meter.len = 0;
    q.tag = 0;
    q.sampling.max_tokens = 50;
    r = run_done(engine, &q);
    q.meter.len = 5; /* told before it ends: at 8 tokens, and every 32 */
    util_submit(engine, &q);
    while (ol_engine_busy(engine))
        must(ol_engine_step(engine, &err), &err);
    for (int i = 0; i < 3; i++) {
        assert_true(take_usage(engine, &e));
        assert_int_equal(e.outcome, i < 2 ? OL_OUTCOME_SO_FAR : OL_OUTCOME_DONE);
        assert_int_equal(e.completion_tokens, i == 0 ? 8 : i == 1 ? 40 : 50);
        assert_int_equal(e.prompt_tokens, N_PROMPT);
        expect_digest(&e.digest, &q.meter_salt, r.tokens, e.completion_tokens);
    }
    assert_false(take_usage(engine, &e));
    util_free(&r, 1);
    q.meter.len = OL_MAX_METER_BYTES + 1;
    must_fail(ol_engine_submit(engine, &q, &err), OL_LIMIT, "meter", &err);
    util_expect_idle(engine);
}

/* A prompt whose pages went to others before it was finished is computed again; what it has used is
 * what it had, whatever became of it. */
static void test_usage_does_not_shrink(void **state)
{
    enum { LONG = 240, OTHERS = 8, PAGES = 36 };
    int32_t tokens[LONG];
    ol_engine_options options;
    ol_request q;
    ol_engine *e;
    ol_engine_info info;
    ol_event event;
    int told = 0;

    (void)state;
    need_path(golden_path("llama"));
    options = util_options(golden_path("llama"));
    options.step_tokens = 16;
    options.no_prefix_cache = true;
    options.kv_bytes = PAGES * util_page_bytes(&options);
    e = util_open(&options);
    for (int i = 0; i < LONG; i++)
        tokens[i] = 3 + i % 100;
    for (uint64_t tag = 0; tag <= OTHERS; tag++) { /* the last one's prompt takes long */
        q = tag < OTHERS ? util_request(tag, prompt, N_PROMPT, 100)
                         : util_request(tag, tokens, LONG, 5);
        q.meter = (ol_text){"whose", tag == OTHERS ? 5 : 0};
        util_submit(e, &q);
    }
    do {
        must(ol_engine_step(e, &err), &err);
        ol_engine_info_get(e, &info);
        while (ol_engine_poll(e, &event))
            if (event.kind == OL_EVENT_USAGE) {
                assert_true(event.prompt_tokens >= told && event.completion_tokens == 0);
                told = event.prompt_tokens;
            }
    } while (info.preemptions == 0);
    assert_in_range(told, 1, LONG - 1);
    ol_engine_cancel(e, OTHERS);
    assert_true(take_usage(e, &event));
    assert_int_equal(event.outcome, OL_OUTCOME_CANCELLED);
    assert_int_equal(event.prompt_tokens, told);
    ol_engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_tags),
        cmocka_unit_test(test_queue_is_bounded),
        cmocka_unit_test(test_steps_have_rows_for_prompts),
        cmocka_unit_test(test_time_is_over),
        cmocka_unit_test(test_bad_place),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_close_with_work_left),
        cmocka_unit_test(test_usage_of_done),
        cmocka_unit_test(test_usage_of_cancelled),
        cmocka_unit_test(test_usage_does_not_shrink),
    };

    return cmocka_run_group_tests(tests, open_default, close_default);
}
