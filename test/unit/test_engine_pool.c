/* test_engine_pool.c: one pool for keys, values and adapters, through engine.h: memory goes both
 * ways, what is in use stays, a crowd in far too little of it ends with the tokens of an engine
 * that has plenty, and what can never fit is told. */
#include "engine_store.h"
#include "noise.h"

#include "engine/engine_internal.h"
#include "engine/formats/adapter_file.h"
#include "engine/main/random_adapter.h"

enum { N_REQUESTS = 80 };

static int one_pages;   /* of each of the first */
static int large_pages; /* of the largest of the others: in runs of neighbours */
static size_t page_bytes;

static ol_engine_options options_of(int pages)
{
    ol_engine_options options = store_options();

    options.cache_bytes = (size_t)pages * (page_bytes ? page_bytes : 1 << 20) + 1;
    return options;
}

static ol_engine *open_pool(int pages)
{
    ol_engine_options options = options_of(pages);
    ol_engine *e = util_open(&options);

    assert_int_equal(ol_kvpages_total(ol_sched_pages(e->sched)),
                     page_bytes ? pages : e->limits.pool_pages);
    return e;
}

/* Of ranks so high that a piece of them is larger than a page. */
static void make_large(ol_engine *e)
{
    for (int i = 0; i < STORE_LARGE; i++) {
        stored *s = &store_large[i];
        const ol_adapter *a;

        must(random_adapter_make(e->config, 90 + 20 * i, (uint64_t)i, &s->weights, &s->config,
                                 &store_error),
             &store_error);
        ol_adapter_digest(s->weights.data, s->weights.len, (const char *)s->config.data,
                          s->config.len, &s->digest);
        must(store_put(e, s), &store_error);
        a = ol_adapters_find(e->adapters, &s->digest);
        assert_non_null(a);
        assert_true(a->pages.need.run > 1);
        large_pages = a->pages.need.n_runs * a->pages.need.run;
    }
}

static int make_store(void **state)
{
    ol_engine *e;

    store_make(state);
    if (!store_bytes)
        return 0;
    e = open_pool(256);
    store_must_put(e, 0);
    page_bytes = e->page_bytes;
    one_pages = ol_kvpages_lent(ol_sched_pages(e->sched));
    assert_true(page_bytes > 0 && one_pages > 0);
    make_large(e);
    ol_engine_close(e);
    return 0;
}

static ol_request request_with(uint64_t tag, int n_prompt, int n, ol_adapter_use *uses, int first)
{
    ol_request q = store_request(tag, n, uses, first);

    q.n_prompt_tokens = n_prompt;
    q.sampling.max_tokens = 4;
    return q;
}

/* Nobody holds a page or an adapter, and the books of pool and store agree. */
static void expect_idle(ol_engine *e)
{
    ol_kvpages *pool = ol_sched_pages(e->sched);
    ol_adapters_counts c = ol_adapters_count(e->adapters);

    util_expect_idle(e);
    ol_sched_check(e->sched);
    assert_int_equal(c.pinned_bytes, 0);
    assert_int_equal(c.reserved, 0);
    assert_int_equal(c.bytes, (size_t)ol_kvpages_lent(pool) * e->page_bytes);
}

/* -- both ways ------------------------------------------------------------------------------- */

static void run_prompt(ol_engine *e, int first, int n_prompt)
{
    ol_request q = util_request(0, store_prompt + first, n_prompt, 1);
    util_result r = {0};

    util_submit(e, &q);
    util_run(e, &r, 1);
    assert_true(r.done);
    util_free(&r, 1);
}

/* Idle pages make place for adapters, idle adapters for pages, each when it was used least lately,
 * whoever asks. */
static void test_memory_goes_both_ways(void **state)
{
    ol_engine *e = open_pool(2 * one_pages + 6);
    ol_kvpages *pool = ol_sched_pages(e->sched);

    (void)state;
    store_must_put(e, 0);
    run_prompt(e, 0, 6 * 16); /* leaves 6 pages that hold its tokens */
    assert_int_equal(ol_kvpages_idle(pool), 6);
    store_must_put(e, 1);
    assert_int_equal(ol_kvpages_idle(pool), 6); /* both fit */
    store_must_put(e, 2);                       /* the first goes: it came before the pages */
    assert_false(ol_engine_adapter_has(e, &store[0].digest));
    assert_int_equal(ol_kvpages_idle(pool), 6);
    store_must_put(e, 3); /* now pages, the last of the prompt first, and only then adapter 1 */
    if (one_pages <= 6)   /* or three do not fit even without pages */
        assert_true(ol_kvpages_idle(pool) < 6);
    assert_true(ol_engine_adapter_has(e, &store[3].digest));
    for (int i = 0; i < 5; i++)
        run_prompt(e, 10 + i, 6 * 16);
    assert_false(ol_engine_adapter_has(e, &store[1].digest));
    assert_true(ol_kvpages_idle(pool) > 6);
    expect_idle(e);
    ol_engine_close(e);
}

/* Logits of a whole text: its pages never take those of the adapters that it is computed with. */
static void test_whole_text(void **state)
{
    ol_engine *e = open_pool(one_pages + 2), *large = open_pool(one_pages + 8);
    ol_adapter_use use = {store[0].digest, 1};
    size_t vocab = (size_t)e->config->vocab;
    float *have = calloc(2 * 16 * vocab, sizeof(float)),
          *want = calloc(3 * 16 * vocab, sizeof(float));

    (void)state;
    store_must_put(e, 0);
    store_must_put(large, 0);
    must(ol_engine_logits(large, &(ol_whole_text){store_prompt, 3 * 16, 1, &use}, want,
                          &store_error),
         &store_error);
    must_fail(ol_engine_logits(e, &(ol_whole_text){store_prompt, 2 * 16 + 1, 1, &use}, have,
                               &store_error),
              OL_LIMIT, "no room for 33 tokens beside 1 adapter", &store_error);
    assert_true(ol_engine_adapter_has(e, &store[0].digest));
    must(ol_engine_logits(e, &(ol_whole_text){store_prompt, 2 * 16, 1, &use}, have, &store_error),
         &store_error);
    assert_memory_equal(have, want, 2 * 16 * vocab * sizeof(float));
    expect_idle(e);
    free(have);
    free(want);
    ol_engine_close(e);
    ol_engine_close(large);
}

/* What each may take at most. */
static void test_parts_have_limits(void **state)
{
    ol_engine_options options = options_of(6 * one_pages);
    ol_engine_info info;
    ol_engine *e;

    (void)state;
    options.adapter_bytes = (size_t)(2 * one_pages) * page_bytes;
    options.kv_bytes = 9 * page_bytes;
    e = util_open(&options);
    for (int i = 0; i < 4; i++)
        store_must_put(e, i);
    ol_engine_info_get(e, &info);
    assert_int_equal(info.adapters, 2);
    assert_int_equal(info.context, 9 * 16);
    for (int i = 0; i < 5; i++)
        run_prompt(e, i, 6 * 16);
    assert_int_equal(ol_kvpages_idle(ol_sched_pages(e->sched)), 9);
    ol_engine_info_get(e, &info);
    assert_int_equal(info.adapters, 2); /* untouched: pages are at their own limit */
    ol_engine_close(e);
}

/* A request does not wait for the adapters of another where there is room for both, however little
 * of it keys and values may have. */
static void test_leaves_room_of_the_whole(void **state)
{
    ol_engine_options options = options_of(40 * one_pages);
    ol_adapter_use uses[1];
    ol_request q = request_with(0, 8, 1, uses, 0), other = request_with(1, 8, 0, NULL, 0);
    util_result r[2] = {{0}};
    ol_engine *e;

    (void)state;
    options.kv_bytes = 8 * page_bytes;
    e = util_open(&options);
    util_submit(e, &q); /* of unknown size: an eighth of the pool is kept for it */
    util_submit(e, &other);
    util_run(e, r, 2);
    assert_int_equal(r[0].needs, 1);
    assert_true(r[1].done);
    store_must_put(e, 0);
    util_run(e, r, 2);
    assert_true(r[0].done);
    util_free(r, 2);
    expect_idle(e);
    ol_engine_close(e);
}

/* The loader's thread places them; one that is new goes there twice, first to be read. */
static void test_offers(void **state)
{
    ol_engine *e = open_pool(2 * one_pages + 2);

    (void)state;
    for (int i = 0; i < 6; i++) {
        store_offer(e, &store[i % 3]);
        assert_true(store_offered(e, true));
        assert_true(ol_engine_adapter_has(e, &store[i % 3].digest));
        expect_idle(e);
    }
    store_offer(e, &store[0]);
    store_offer(e, &store[0]);
    store_offer(e, &store[1]);
    ol_engine_close(e); /* with jobs under way */
}

/* -- what can never be ------------------------------------------------------------------------ */

static void test_too_large(void **state)
{
    ol_engine *e = open_pool(one_pages - 1);
    ol_adapter_use uses[2];
    ol_request q = request_with(0, 8, 1, uses, 0);
    util_result r = {0};

    (void)state;
    util_submit(e, &q);
    must_fail(store_put(e, &store[0]), OL_LIMIT, "budget", &store_error);
    util_run(e, &r, 1);
    assert_true(r.failed);
    util_free(&r, 1);
    ol_engine_close(e);
    e = open_pool(2 * one_pages + 3); /* two adapters, 48 tokens */
    q = request_with(0, 60, 2, uses, 0);
    util_submit(e, &q);
    store_must_put(e, 0);
    store_must_put(e, 1);
    util_run(e, &r, 1);
    assert_true(r.failed);
    must_fail(r.error.code, OL_LIMIT, "budget", &r.error);
    util_free(&r, 1);
    q = request_with(0, 40, 2, uses, 0); /* 44 tokens: just */
    util_submit(e, &q);
    util_run(e, &r, 1);
    assert_true(r.done);
    util_free(&r, 1);
    expect_idle(e);
    ol_engine_close(e);
}

/* -- a crowd -------------------------------------------------------------------------------- */

/* Some want a large one, too. */
static void mix(crowd *c)
{
    for (int i = 0; i < c->n; i++)
        if (c->requests[i].n_adapters && pick(3) == 0)
            c->uses[i][pick(c->requests[i].n_adapters)].digest =
                store_large[pick(STORE_LARGE)].digest;
}

static void crowd_in(const crowd *c, int pages, bool loader, const util_result *want)
{
    static util_result have[N_REQUESTS];
    ol_engine_options options = options_of(pages);
    ol_engine_info info;
    ol_engine *e;

    options.context = 112;
    e = util_open(&options);
    crowd_run(e, c, have, loader);
    ol_engine_info_get(e, &info);
    print_message("%d pages: %llu evictions, %llu preemptions\n", pages,
                  (unsigned long long)info.adapter_evictions, (unsigned long long)info.preemptions);
    crowd_check_same(c, have, want);
    assert_true(info.adapter_evictions > 10);
    assert_true(info.preemptions > 0 || pages > large_pages); /* small pools have too few pages */
    expect_idle(e);
    ol_engine_close(e);
    util_free(have, N_REQUESTS);
}

static void run_crowds(bool mixed, int least, int most)
{
    static crowd c;
    static util_result want[N_REQUESTS];
    ol_engine_options options = options_of(0);
    ol_engine *e;

    crowd_make(&c, N_REQUESTS, 2, 40, 60);
    if (mixed)
        mix(&c);
    options.cache_bytes = 0;
    e = util_open(&options); /* each with memory of its own, and plenty */
    crowd_run(e, &c, want, false);
    ol_engine_close(e);
    for (int pages = least; pages <= most; pages += (most - least) / 2 + 1) {
        crowd_in(&c, pages, false, want);
        crowd_in(&c, pages, true, want);
    }
    util_free(want, N_REQUESTS);
}

static void test_crowd(void **state)
{
    (void)state;
    run_crowds(false, 2 * one_pages + 7, 4 * one_pages);
}

/* Runs of neighbours have to be found among pages in use and adapters of one page here and there.
 */
static void test_crowd_with_large_ones(void **state)
{
    (void)state;
    run_crowds(true, large_pages + one_pages + 7, large_pages + 4 * one_pages);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_goes_both_ways),
        cmocka_unit_test(test_whole_text),
        cmocka_unit_test(test_parts_have_limits),
        cmocka_unit_test(test_leaves_room_of_the_whole),
        cmocka_unit_test(test_offers),
        cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_crowd),
        cmocka_unit_test(test_crowd_with_large_ones),
    };

    return cmocka_run_group_tests(tests, make_store, store_free);
}
