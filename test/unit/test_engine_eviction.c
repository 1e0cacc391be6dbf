/* test_engine_eviction.c: adapters within a budget: which go, which stay, what is remembered of
 * those that went, and what does not fit at all. */
#include "engine_store.h"

#include "engine/engine_internal.h"
#include "engine/stats.h"

/* -- the budget ------------------------------------------------------------------------------- */

static void test_least_recently_used_goes(void **state)
{
    ol_engine *e = store_open(3 * store_bytes);
    ol_adapter_use uses[1];
    util_result r = {0};
    ol_engine_info info;
    ol_request q;

    (void)state;
    for (int i = 0; i < 3; i++)
        store_must_put(e, i);
    q = store_request(0, 1, uses, 0);
    util_submit(e, &q); /* uses 0: now 1 is the oldest */
    util_run(e, &r, 1);
    util_free(&r, 1);
    store_must_put(e, 3);
    assert_true(ol_engine_adapter_has(e, &store[0].digest));
    assert_false(ol_engine_adapter_has(e, &store[1].digest));
    assert_true(ol_engine_adapter_has(e, &store[2].digest));
    assert_true(ol_engine_adapter_has(e, &store[3].digest));
    store_must_put(e, 3); /* again: nothing happens */
    ol_engine_info_get(e, &info);
    assert_int_equal(info.adapters, 3);
    assert_true(info.adapter_bytes <= 3 * store_bytes);
    assert_int_equal(info.adapter_loads, 4);
    assert_int_equal(info.adapter_hits, 1);
    assert_int_equal(info.adapter_evictions, 1);
    ol_engine_close(e);
}

/* Requests for `i`, one after the other, each to its end; the adapter is put when it is asked
 * for. */
static void ask_for(ol_engine *e, int i, int times)
{
    for (int t = 0; t < times; t++) {
        ol_adapter_use uses[1];
        ol_request q = store_request(0, 1, uses, i);
        util_result r = {0};

        q.sampling.max_tokens = 1;
        util_submit(e, &q);
        if (!ol_engine_adapter_has(e, &store[i].digest))
            store_must_put(e, i);
        util_run(e, &r, 1);
        assert_true(r.done);
        util_free(&r, 1);
    }
}

/* What is asked for once passes through, and does not push out what is asked for often; and what
 * nobody asks for any more goes in the end. */
static void test_often_used_stay(void **state)
{
    ol_engine *e = store_open(3 * store_bytes);
    int rounds = 0;

    (void)state;
    ask_for(e, 0, 2);
    ask_for(e, 1, 2);
    for (int i = 2; i < STORE_SIZE; i++) {
        ask_for(e, i, 1);
        assert_true(ol_engine_adapter_has(e, &store[i].digest));
        assert_true(ol_engine_adapter_has(e, &store[0].digest));
        assert_true(ol_engine_adapter_has(e, &store[1].digest));
    }
    while (ol_engine_adapter_has(e, &store[0].digest) ||
           ol_engine_adapter_has(e, &store[1].digest)) {
        ask_for(e, 2, 1);
        ask_for(e, 3, 1);
        ask_for(e, 4, 1);
        assert_true(++rounds < 1000);
    }
    ol_engine_close(e);
}

/* Of two adapters that a request waits for, the first to come is not what makes room for the
 * second, however often others were used. */
static void test_those_waited_for_stay(void **state)
{
    ol_engine *e = store_open(3 * store_bytes);
    ol_adapter_use uses[2], other[1];
    ol_request q = store_request(1, 1, other, 5), both = store_request(2, 2, uses, 2);
    util_result r[3] = {{0}};

    (void)state;
    ask_for(e, 0, 5);
    ask_for(e, 1, 5);
    util_submit(e, &q); /* the oldest that waits: it alone may hold what it has */
    util_submit(e, &both);
    util_take(e, r, 3);
    store_must_put(e, 2);
    store_must_put(e, 3);
    assert_true(ol_engine_adapter_has(e, &store[2].digest));
    store_must_put(e, 5);
    util_run(e, r, 3);
    assert_true(r[1].done);
    for (int i = 2; i < 4 && !r[2].done; i++)
        if (!ol_engine_adapter_has(e, &store[i].digest))
            store_must_put(e, i);
    util_run(e, r, 3);
    assert_true(r[2].done);
    util_free(r, 3);
    util_expect_idle(e);
    ol_engine_close(e);
}

/* -- what is known of those that are gone ------------------------------------------------------ */

static int stat_of(ol_engine *e, int i, ol_adapter_stat *stat)
{
    ol_adapter_stat *all;
    int n = ol_engine_adapter_stats(e, &all);

    memset(stat, 0, sizeof(*stat));
    for (int k = 0; k < n; k++)
        if (ol_digest_equal(&all[k].digest, &store[i].digest))
            *stat = all[k];
    free(all);
    return n;
}

static void test_remembers_the_evicted(void **state)
{
    ol_engine *e = store_open(2 * store_bytes);
    ol_adapter_stat first;

    (void)state;
    for (int i = 0; i < 3; i++) {
        ol_adapter_use uses[1];
        ol_request q = store_request(1, 1, uses, i);
        util_result r[2] = {{0}};

        util_submit(e, &q);
        store_must_put(e, i);
        util_run(e, r, 2);
        assert_true(r[1].done);
        util_free(r, 2);
    }
    assert_int_equal(stat_of(e, 0, &first), 3);
    assert_false(first.resident);
    assert_int_equal(first.misses, 1);
    assert_int_equal(first.requests, 0);
    assert_int_equal(first.bytes, store_bytes);
    store_must_put(e, 0); /* it goes on counting where it was */
    assert_int_equal(stat_of(e, 0, &first), 3);
    assert_true(first.resident);
    assert_int_equal(first.misses, 1);
    ol_engine_adapter_stats_reset(e);
    assert_int_equal(stat_of(e, 0, &first), 2);
    assert_int_equal(first.misses, 0);
    ol_engine_close(e);
}

static void test_remembers_so_many(void **state)
{
    ol_engine *e = store_open(0);
    ol_adapter_stat stat;
    ol_event event;

    (void)state;
    for (int i = 0; i < OL_ADAPTERS_REMEMBERED + 100; i++) {
        ol_adapter_use uses[1];
        ol_request q = store_request(1, 1, uses, 0);

        memcpy(uses[0].digest.bytes, &i, sizeof(i));
        util_submit(e, &q);
        ol_engine_cancel(e, 1);
        while (ol_engine_poll(e, &event))
            ;
    }
    assert_int_equal(stat_of(e, 0, &stat), OL_ADAPTERS_REMEMBERED);
    ol_engine_close(e);
}

static void test_too_large_alone(void **state)
{
    ol_engine *e = store_open(store_bytes - 1);
    ol_adapter_use uses[1];
    ol_request q = store_request(0, 1, uses, 0);
    util_result r = {0};

    (void)state;
    util_submit(e, &q);
    must_fail(store_put(e, &store[0]), OL_LIMIT, "budget", &store_error);
    util_run(e, &r, 1);
    assert_true(r.failed);
    assert_int_equal(r.error.code, OL_LIMIT);
    util_free(&r, 1);
    ol_engine_close(e);
}

/* Each fits, all together do not: known when they have all been seen. */
static void test_too_large_together(void **state)
{
    ol_engine *e = store_open(2 * store_bytes);
    ol_adapter_use uses[3];
    ol_request q = store_request(0, 3, uses, 0);
    util_result r = {0};

    (void)state;
    util_submit(e, &q);
    for (int i = 0; i < 3 && !r.failed; i++) {
        store_must_put(e, i);
        util_run(e, &r, 1);
    }
    assert_true(r.failed);
    must_fail(r.error.code, OL_LIMIT, "budget", &r.error);
    util_free(&r, 1);
    util_expect_idle(e);
    ol_engine_close(e);
}

/* Running requests keep theirs; a newcomer waits until one is free, and is asked again. */
static void test_pinned_stay(void **state)
{
    ol_engine *e = store_open(store_bytes);
    ol_adapter_use uses[2];
    ol_request first = store_request(0, 1, uses, 0), second = store_request(1, 1, uses + 1, 1);
    util_result r[2] = {0};

    (void)state;
    util_submit(e, &first);
    store_must_put(e, 0);
    must(ol_engine_step(e, &store_error), &store_error);
    util_submit(e, &second);
    util_take(e, r, 2);
    assert_int_equal(r[1].needs, 1); /* its size is not known yet */
    store_must_put(e, 1);            /* finds no room */
    assert_false(ol_engine_adapter_has(e, &store[1].digest));
    util_take(e, r, 2);
    assert_int_equal(r[1].needs, 1); /* not yet again */
    util_run(e, r, 2);
    assert_true(r[0].done);
    assert_int_equal(r[1].needs, 2);
    store_must_put(e, 1);
    assert_true(ol_engine_adapter_has(e, &store[1].digest));
    util_run(e, r, 2);
    assert_true(r[1].done);
    util_free(r, 2);
    util_expect_idle(e);
    ol_engine_close(e);
}

static void test_cancel_unpins(void **state)
{
    ol_engine *e = store_open(store_bytes);
    ol_adapter_use uses[1];
    ol_request q = store_request(0, 1, uses, 0);

    (void)state;
    util_submit(e, &q);
    store_must_put(e, 0);
    must(ol_engine_step(e, &store_error), &store_error);
    store_must_put(e, 1); /* no room while 0 runs */
    assert_false(ol_engine_adapter_has(e, &store[1].digest));
    ol_engine_cancel(e, 0);
    store_must_put(e, 1);
    assert_true(ol_engine_adapter_has(e, &store[1].digest));
    assert_false(ol_engine_adapter_has(e, &store[0].digest));
    util_expect_idle(e);
    ol_engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_least_recently_used_goes),
        cmocka_unit_test(test_often_used_stay),
        cmocka_unit_test(test_those_waited_for_stay),
        cmocka_unit_test(test_remembers_the_evicted),
        cmocka_unit_test(test_remembers_so_many),
        cmocka_unit_test(test_too_large_alone),
        cmocka_unit_test(test_too_large_together),
        cmocka_unit_test(test_pinned_stay),
        cmocka_unit_test(test_cancel_unpins),
    };

    return cmocka_run_group_tests(tests, store_make, store_free);
}
