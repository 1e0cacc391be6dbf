/* test_engine_crowd.c: far more adapters than there is room for, wanted at once: in the budget, and
 * in the device's memory. */
#include "engine_store.h"

enum { N_REQUESTS = 60 };

/* A cache of three adapters for twelve, and few pages: all is answered, nothing is exceeded,
 * and the tokens are those of a cache that holds everything. */
static void test_crowd(void **state)
{
    static crowd c;
    static util_result want[N_REQUESTS], have[N_REQUESTS];
    ol_engine *roomy = store_open(0), *tight;
    ol_engine_options options = store_options();
    ol_engine_info info;

    (void)state;
    crowd_make(&c, N_REQUESTS, 3, 8, 20);
    crowd_run(roomy, &c, want, false);
    ol_engine_close(roomy);
    options.adapter_bytes = 3 * store_bytes + store_bytes / 2;
    options.kv_bytes = 12 * util_page_bytes(&options);
    options.context = 64;
    tight = util_open(&options);
    crowd_run(tight, &c, have, false);
    ol_engine_info_get(tight, &info);
    assert_true(info.adapter_bytes <= options.adapter_bytes);
    assert_true(info.adapter_evictions > 10);
    crowd_check_same(&c, have, want);
    util_expect_idle(tight);
    ol_engine_close(tight);
    util_free(want, N_REQUESTS);
    util_free(have, N_REQUESTS);
}

/* -- the device's memory ----------------------------------------------------------------------- */

/* Up to four requests with an adapter each, a host that answers at once. */
static void run_some(ol_engine *e, util_result *r, int n)
{
    ol_adapter_use uses[4];
    bool ended = false;

    for (uint64_t i = 0; i < (uint64_t)n; i++) {
        ol_request q = store_request(i, 1, &uses[i], (int)i);

        util_submit(e, &q);
    }
    for (int tries = 0; tries < 40 && !ended; tries++) {
        ended = true;
        util_run(e, r, n);
        for (int i = 0; i < n; i++) {
            if (!r[i].done && !r[i].failed && r[i].needs)
                store_must_put(e, i);
            ended = ended && (r[i].done || r[i].failed);
        }
    }
    assert_true(ended);
}

/* An engine whose device has memory for `adapters` and a half and, when `working`, for all that
 * four requests need to be computed; otherwise for next to nothing. */
static ol_engine *open_limited(size_t adapters, bool working)
{
    ol_engine_options options;
    util_result r[4] = {0};
    ol_engine_info info;
    ol_engine *e;

    options = store_options();
    options.kv_bytes = 1 << 20;
    options.max_seqs = 4;
    options.step_tokens = 32;
    if (working && util_in_pool()) { /* which ends instead: adapters lie there, and a few pages */
        options.cache_bytes = adapters * store_bytes + store_bytes / 2;
        return util_open(&options);
    }
    e = util_open(&options);
    for (int n = 1; working && n <= 4; n++) { /* steps of every size have their needs */
        run_some(e, r, n);
        util_free(r, 4);
    }
    ol_engine_info_get(e, &info);
    ol_engine_close(e);
    options.memory_limit = info.device.memory_used - (size_t)info.adapters * store_bytes +
                           adapters * store_bytes + (working ? store_bytes / 2 : 64);
    return util_open(&options);
}

/* It ends before the budget of adapters does: they take turns. */
static void test_device_memory_ends(void **state)
{
    ol_engine *e = open_limited(2, true);
    util_result r[4] = {0};
    ol_engine_info info;

    (void)state;
    run_some(e, r, 4);
    for (int i = 0; i < 4; i++)
        assert_true(r[i].done);
    ol_engine_info_get(e, &info);
    assert_true(info.adapter_evictions >= 2);
    util_free(r, 4);
    util_expect_idle(e);
    ol_engine_close(e);
}

/* There never is enough to compute with: requests fail one by one, the engine lives. A device with
 * memory of its own takes before the first request what most steps need (warm.c). */
static void test_no_working_memory(void **state)
{
    ol_request q = store_request(0, 0, NULL, 0);
    util_result r[4] = {0};
    ol_engine *e;

    (void)state;
    if (util_on_cuda())
        skip();
    e = open_limited(0, false);
    util_submit(e, &q);
    q.tag = 1;
    util_submit(e, &q);
    util_run(e, r, 4);
    for (int i = 0; i < 2; i++) {
        assert_true(r[i].failed);
        assert_int_equal(r[i].error.code, OL_NOMEM);
    }
    util_free(r, 4);
    util_expect_idle(e);
    ol_engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crowd),
        cmocka_unit_test(test_device_memory_ends),
        cmocka_unit_test(test_no_working_memory),
    };

    return cmocka_run_group_tests(tests, store_make, store_free);
}
