/* test_engine_adapters.c: adapters through engine.h: how they are asked for, put and refused. */
#include "engine_store.h"

#include "engine/engine_internal.h"
#include "engine/formats/adapter_file.h"

/* -- asking and bringing --------------------------------------------------------------------- */

static void test_needed_then_put(void **state)
{
    ol_engine *e = store_open(0);
    ol_adapter_use uses[2];
    ol_request q = store_request(0, 2, uses, 0), other = store_request(1, 0, NULL, 0);
    util_result r[2] = {0};

    (void)state;
    util_submit(e, &q);
    assert_false(ol_engine_busy(e));
    util_submit(e, &other);
    util_run(e, r, 2);
    assert_int_equal(r[0].needs, 2);
    assert_true(r[1].done); /* did not wait for them */
    assert_int_equal(r[1].n_shares, 0);
    store_must_put(e, 0);
    assert_false(ol_engine_busy(e));
    store_must_put(e, 1);
    assert_true(ol_engine_busy(e));
    util_run(e, r, 1);
    assert_true(r[0].done);
    assert_int_equal(r[0].needs, 2);
    assert_int_equal(r[0].n_shares, 2);
    assert_true(r[0].shares[0] > 0 && r[0].shares[1] > r[0].shares[0]); /* 3 and 4 of alpha */
    assert_true(r[0].shares[0] + r[0].shares[1] > 1 - 1e-12);
    util_expect_idle(e);
    util_free(r, 2);
    util_submit(e, &q); /* now they are there */
    util_run(e, r, 1);
    assert_true(r[0].done);
    assert_int_equal(r[0].needs, 0);
    util_free(r, 2);
    ol_engine_close(e);
}

/* Two requests miss one adapter: one host is asked, the next if the first goes. */
static void test_asked_once(void **state)
{
    ol_engine *e = store_open(0);
    ol_adapter_use uses[3];
    util_result r[3] = {0};

    (void)state;
    for (uint64_t i = 0; i < 3; i++) {
        ol_request q = store_request(i, 1, &uses[i], 0);

        util_submit(e, &q);
    }
    util_take(e, r, 3);
    assert_int_equal(r[0].needs + r[1].needs + r[2].needs, 1);
    assert_int_equal(r[0].needs, 1);
    ol_engine_cancel(e, 0);
    util_take(e, r, 3);
    assert_int_equal(r[1].needs + r[2].needs, 1);
    store_must_put(e, 0);
    util_run(e, r, 3);
    assert_true(r[1].done && r[2].done && !r[0].done);
    util_free(r, 3);
    util_expect_idle(e);
    ol_engine_close(e);
}

/* As if nothing had happened for longer than a host is waited for. */
static void time_passes(ol_engine *e)
{
    uint64_t us = e->patience_us + 1000;

    e->admission_us -= us;
    for (request *r = e->pending_head; r; r = r->next)
        for (int i = 0; i < r->n_adapters; i++) {
            r->asked_us[i] -= r->asked_us[i] ? us : 0;
            r->adapters[i]->asked_us -= us;
        }
}

/* A host that does not answer holds up neither those who want the same nor those who want the
 * room. */
static void test_silent_host(void **state)
{
    ol_engine *e = store_open(2 * store_bytes + store_bytes / 2);
    ol_adapter_use uses[4];
    util_result r[3] = {0};
    ol_request q;

    (void)state;
    store_must_put(e, 2);
    q = store_request(0, 2, uses, 1); /* adapters 1, never brought by it, and 2, which it pins */
    util_submit(e, &q);
    q = store_request(1, 1, uses + 2, 1);
    util_submit(e, &q);
    util_take(e, r, 3);
    assert_int_equal(r[0].needs, 1);
    assert_int_equal(r[1].needs, 0);
    assert_int_equal(ol_engine_patience_ms(e), 3600001);
    time_passes(e);
    must(ol_engine_step(e, &store_error), &store_error);
    util_take(e, r, 3);
    assert_int_equal(r[0].needs, 1);
    assert_int_equal(r[1].needs, 1); /* now the second is asked */
    time_passes(e);
    q = store_request(2, 2, uses, 3); /* 3 and 4 need the room of 2 */
    q.adapters = (ol_adapter_use[2]){{store[3].digest, 1}, {store[4].digest, 1}};
    util_submit(e, &q);
    store_must_put(e, 3);
    store_must_put(e, 4);
    util_run(e, r, 3);
    assert_true(r[2].done);
    store_must_put(e, 1); /* late, but it comes */
    util_run(e, r, 3);
    assert_true(r[1].done);
    if (!r[0].done)
        store_must_put(e, 2); /* had gone */
    util_run(e, r, 3);
    assert_true(r[0].done);
    assert_int_equal(ol_engine_patience_ms(e), -1);
    util_free(r, 3);
    util_expect_idle(e);
    ol_engine_close(e);
}

static void test_bad_bytes_fail_those_who_wait(void **state)
{
    ol_engine *e = store_open(0);
    stored bad = store[0];
    ol_adapter_use uses[3];
    ol_request q;
    util_result r[3] = {0};

    (void)state;
    bad.weights.len /= 2;
    ol_adapter_digest(bad.weights.data, bad.weights.len, (const char *)bad.config.data,
                      bad.config.len, &bad.digest);
    q = store_request(0, 1, uses, 0);
    uses[0].digest = bad.digest;
    util_submit(e, &q);
    q.tag = 1;
    util_submit(e, &q);
    q = store_request(2, 1, uses + 1, 1);
    util_submit(e, &q);
    assert_true(store_put(e, &bad) != OL_OK);
    util_run(e, r, 3);
    assert_true(r[0].failed && r[1].failed && !r[2].failed);
    assert_true(r[0].error.message[0]);
    assert_int_equal(r[0].error.code, store_error.code);
    store_must_put(e, 1);
    util_run(e, r, 3);
    assert_true(r[2].done);
    util_free(r, 3);
    util_expect_idle(e);
    ol_engine_close(e);
}

/* Bytes of another digest say nothing about the adapter that was asked for. */
static void test_wrong_digest(void **state)
{
    ol_engine *e = store_open(0);
    stored mixed = store[1];
    ol_adapter_use uses[1];
    ol_request q = store_request(0, 1, uses, 0);
    util_result r = {0};

    (void)state;
    util_submit(e, &q);
    mixed.digest = store[0].digest;
    must_fail(store_put(e, &mixed), OL_INVALID, "digest", &store_error);
    util_run(e, &r, 1);
    assert_false(r.failed);
    assert_false(ol_engine_adapter_has(e, &store[0].digest));
    assert_false(ol_engine_adapter_has(e, &store[1].digest));
    store_must_put(e, 0);
    util_run(e, &r, 1);
    assert_true(r.done);
    util_free(&r, 1);
    ol_engine_close(e);
}

static void test_check_keeps_nothing(void **state)
{
    ol_engine *e = store_open(0);
    ol_adapter_bytes bytes = util_bytes(&store[0].weights, &store[0].config);
    ol_adapter_facts facts;
    ol_engine_info info;

    (void)state;
    must(ol_engine_adapter_check(e, &bytes, &facts, &store_error), &store_error);
    assert_true(ol_digest_equal(&facts.digest, &store[0].digest));
    assert_int_equal(facts.max_rank, 4);
    assert_int_equal(facts.n_modules, 14);
    assert_int_equal(facts.module_mask, 0x7F);
    ol_engine_info_get(e, &info);
    assert_int_equal(info.adapters, 0);
    assert_int_equal(info.adapter_bytes, 0);
    ol_engine_close(e);
}

static void test_of_another_model(void **state)
{
    ol_engine *e = store_open(0);
    ol_buf weights, config;
    ol_adapter_bytes bytes;
    ol_adapter_facts facts;
    ol_digest digest;

    (void)state;
    util_read_adapter(golden_path("qwen3/adapters/a"), &weights, &config, &digest);
    bytes = util_bytes(&weights, &config);
    must_fail(ol_engine_adapter_put(e, &digest, &bytes, &facts, &store_error), OL_MISMATCH, "",
              &store_error);
    ol_buf_free(&weights);
    ol_buf_free(&config);
    ol_engine_close(e);
}

static void test_max_tokens_zero_waits_too(void **state)
{
    ol_engine *e = store_open(0);
    ol_adapter_use uses[2];
    ol_request q = store_request(0, 2, uses, 0);
    util_result r = {0};

    (void)state;
    q.sampling.max_tokens = 0;
    util_submit(e, &q);
    util_run(e, &r, 1);
    assert_false(r.done);
    store_must_put(e, 0);
    store_must_put(e, 1);
    util_run(e, &r, 1);
    assert_true(r.done);
    assert_true(r.shares[0] == 0.5 && r.shares[1] == 0.5);
    util_free(&r, 1);
    util_expect_idle(e);
    ol_engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_needed_then_put),
        cmocka_unit_test(test_asked_once),
        cmocka_unit_test(test_silent_host),
        cmocka_unit_test(test_bad_bytes_fail_those_who_wait),
        cmocka_unit_test(test_wrong_digest),
        cmocka_unit_test(test_check_keeps_nothing),
        cmocka_unit_test(test_of_another_model),
        cmocka_unit_test(test_max_tokens_zero_waits_too),
    };

    return cmocka_run_group_tests(tests, store_make, store_free);
}
