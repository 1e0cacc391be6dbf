/* test_engine_pool.c: one pool for keys, values and adapters, through engine.h: memory goes both
 * ways, what is in use stays, a crowd in far too little of it ends with the tokens of an engine
 * that has plenty, and what can never fit is told. */
#include "engine_util.h"

#include "engine/engine_internal.h"
#include "engine/main/random_adapter.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL "llama"

enum { N_ADAPTERS = 12, N_LARGE = 3, N_REQUESTS = 80, MOST_TOKENS = 120 };

typedef struct stored {
    ol_buf weights, config;
    ol_digest digest;
} stored;

static stored store[N_ADAPTERS], large[N_LARGE];
static int one_pages;   /* of each of the first */
static int large_pages; /* of the largest of the others: in runs of neighbours */
static size_t page_bytes;
static int32_t prompt[MOST_TOKENS];
static ol_error err;
static uint64_t noise = 11;

static int pick(int n)
{
    noise = noise * 6364136223846793005u + 1442695040888963407u;
    return (int)((noise >> 33) % (uint64_t)n);
}

static ol_engine_options options_of(int pages)
{
    ol_engine_options options;

    need_path(golden_path(MODEL));
    options = util_options(golden_path(MODEL));
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

static ol_code put_stored(ol_engine *e, const stored *s)
{
    ol_adapter_facts facts;

    return ol_engine_adapter_put(e, &s->digest, s->weights.data, s->weights.len,
                                 (const char *)s->config.data, s->config.len, &facts, &err);
}

static ol_code put(ol_engine *e, int i)
{
    return put_stored(e, &store[i]);
}

/* As a host does it: on the loader's thread. */
static void offer(ol_engine *e, const stored *s)
{
    ol_adapter_offer what = {
        .expected = s->digest, .weights_len = s->weights.len, .config_len = s->config.len};

    what.bytes = malloc(s->weights.len + s->config.len);
    assert_non_null(what.bytes);
    memcpy(what.bytes, s->weights.data, s->weights.len);
    memcpy(what.bytes + s->weights.len, s->config.data, s->config.len);
    must(ol_engine_adapter_offer(e, &what, &err), &err);
}

static bool result_of(ol_engine *e, bool wait)
{
    struct pollfd readable = {.fd = ol_engine_adapter_fd(e), .events = POLLIN};
    ol_adapter_result result;

    do {
        if (ol_engine_adapter_result(e, &result)) {
            free(result.offered);
            must(result.code, &result.error);
            return true;
        }
    } while (wait && poll(&readable, 1, -1) == 1);
    return false;
}

/* Of ranks so high that a piece of them is larger than a page. */
static void make_large(ol_engine *e)
{
    for (int i = 0; i < N_LARGE; i++) {
        stored *s = &large[i];
        const ol_adapter *a;

        must(
            random_adapter_make(e->config, 90 + 20 * i, (uint64_t)i, &s->weights, &s->config, &err),
            &err);
        ol_adapter_digest(s->weights.data, s->weights.len, (const char *)s->config.data,
                          s->config.len, &s->digest);
        must(put_stored(e, s), &err);
        a = ol_adapters_find(e->adapters, &s->digest);
        assert_non_null(a);
        assert_true(a->pages.need.run > 1);
        large_pages = a->pages.need.n_runs * a->pages.need.run;
    }
}

static int make_store(void **state)
{
    ol_engine *e;

    (void)state;
    if (access(golden_path(MODEL), F_OK) != 0)
        return 0;
    for (int i = 0; i < N_ADAPTERS; i++)
        util_make_adapter(MODEL, "a", 3 + i, &store[i].weights, &store[i].config, &store[i].digest);
    for (int i = 0; i < MOST_TOKENS; i++)
        prompt[i] = 1 + pick(200);
    e = open_pool(256);
    must(put(e, 0), &err);
    page_bytes = e->page_bytes;
    one_pages = ol_kvpages_lent(ol_sched_pages(e->sched));
    assert_true(page_bytes > 0 && one_pages > 0);
    make_large(e);
    ol_engine_close(e);
    return 0;
}

static int free_store(void **state)
{
    (void)state;
    for (int i = 0; i < N_ADAPTERS; i++) {
        ol_buf_free(&store[i].weights);
        ol_buf_free(&store[i].config);
    }
    for (int i = 0; i < N_LARGE; i++) {
        ol_buf_free(&large[i].weights);
        ol_buf_free(&large[i].config);
    }
    return 0;
}

static ol_request request_with(uint64_t tag, int n_prompt, int n, ol_adapter_use *uses, int first)
{
    ol_request q = util_request(tag, prompt, n_prompt, 4);

    for (int i = 0; i < n; i++)
        uses[i] = (ol_adapter_use){store[first + i].digest, 1.0f};
    q.adapters = uses;
    q.n_adapters = n;
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
    ol_request q = util_request(0, prompt + first, n_prompt, 1);
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
    must(put(e, 0), &err);
    run_prompt(e, 0, 6 * 16); /* leaves 6 pages that hold its tokens */
    assert_int_equal(ol_kvpages_idle(pool), 6);
    must(put(e, 1), &err);
    assert_int_equal(ol_kvpages_idle(pool), 6); /* both fit */
    must(put(e, 2), &err);                      /* the first goes: it came before the pages */
    assert_false(ol_engine_adapter_has(e, &store[0].digest));
    assert_int_equal(ol_kvpages_idle(pool), 6);
    must(put(e, 3), &err); /* now pages, the last of the prompt first, and only then adapter 1 */
    if (one_pages <= 6)    /* or three do not fit even without pages */
        assert_true(ol_kvpages_idle(pool) < 6);
    assert_true(ol_engine_adapter_has(e, &store[3].digest));
    for (int i = 0; i < 5; i++)
        run_prompt(e, 10 + i, 6 * 16);
    assert_false(ol_engine_adapter_has(e, &store[1].digest));
    assert_true(ol_kvpages_idle(pool) > 6);
    expect_idle(e);
    ol_engine_close(e);
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
        must(put(e, i), &err);
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

/* The loader's thread places them; one that is new goes there twice, first to be read. */
static void test_offers(void **state)
{
    ol_engine *e = open_pool(2 * one_pages + 2);

    (void)state;
    for (int i = 0; i < 6; i++) {
        offer(e, &store[i % 3]);
        assert_true(result_of(e, true));
        assert_true(ol_engine_adapter_has(e, &store[i % 3].digest));
        expect_idle(e);
    }
    offer(e, &store[0]);
    offer(e, &store[0]);
    offer(e, &store[1]);
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
    must_fail(put(e, 0), OL_LIMIT, "budget", &err);
    util_run(e, &r, 1);
    assert_true(r.failed);
    util_free(&r, 1);
    ol_engine_close(e);
    e = open_pool(2 * one_pages + 3); /* two adapters, 48 tokens */
    q = request_with(0, 60, 2, uses, 0);
    util_submit(e, &q);
    must(put(e, 0), &err);
    must(put(e, 1), &err);
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

/* -- a crowd ------------------------------------------------------------------------------------
 */

typedef struct crowd {
    ol_adapter_use uses[N_REQUESTS][3];
    ol_request requests[N_REQUESTS];
} crowd;

/* mixed: some with a large adapter, too. */
static void make_crowd(crowd *c, bool mixed)
{
    for (int i = 0; i < N_REQUESTS; i++) {
        ol_request *q = &c->requests[i];

        *q = request_with((uint64_t)i, 1 + pick(40), pick(3), c->uses[i], pick(N_ADAPTERS - 3));
        q->sampling.max_tokens = 1 + pick(60);
        q->sampling.temperature = 0.8f;
        q->sampling.seed = (uint64_t)i;
        q->priority = pick(8) == 0;
        if (mixed && q->n_adapters && pick(3) == 0)
            c->uses[i][pick(q->n_adapters)].digest = large[pick(N_LARGE)].digest;
    }
}

typedef struct hall {
    ol_engine *e;
    const crowd *crowd;
    util_result *results;
    bool loader;
    const stored *asked[256];
    int n_asked, under_way, ended;
} hall;

static const stored *with_digest(const ol_digest *digest)
{
    for (int i = 0; i < N_ADAPTERS; i++)
        if (ol_digest_equal(&store[i].digest, digest))
            return &store[i];
    for (int i = 0; i < N_LARGE; i++)
        if (ol_digest_equal(&large[i].digest, digest))
            return &large[i];
    fail_msg("an adapter that nobody has");
    return NULL;
}

static void bring_one(hall *h)
{
    int at = pick(h->n_asked);
    const stored *s = h->asked[at];

    h->asked[at] = h->asked[--h->n_asked];
    if (!h->loader) {
        must(put_stored(h->e, s), &err);
        return;
    }
    offer(h->e, s);
    h->under_way++;
}

static void take_events(hall *h)
{
    ol_event event;

    while (ol_engine_poll(h->e, &event)) {
        util_result *one = &h->results[event.tag];

        if (event.kind == OL_EVENT_NEED_ADAPTER) {
            assert_in_range(h->n_asked, 0, 255);
            h->asked[h->n_asked++] = with_digest(&event.digest);
        } else if (event.kind == OL_EVENT_TOKEN) {
            one->tokens = realloc(one->tokens, (size_t)(one->n + 1) * sizeof(int32_t));
            one->tokens[one->n++] = event.token;
        } else {
            if (event.kind == OL_EVENT_FAILED)
                must(event.error.code, &event.error);
            one->done = true;
            h->ended++;
        }
    }
}

/* What became of it, where it would never end. */
static void tell_hall(const hall *h, int submitted)
{
    ol_kvpages *pool = ol_sched_pages(h->e->sched);
    ol_adapters_counts c = ol_adapters_count(h->e->adapters);

    print_message(
        "%d submitted, %d ended, %d asked, %d under way; %d pending, %d waiting, %d "
        "running; pages: %d used, %d lent, %d idle; bytes: %zu, %zu pinned, %zu reserved, "
        "room %zu\n",
        submitted, h->ended, h->n_asked, h->under_way, h->e->n_pending,
        ol_sched_waiting(h->e->sched), ol_sched_running(h->e->sched), ol_kvpages_used(pool),
        ol_kvpages_lent(pool), ol_kvpages_idle(pool), c.bytes, c.pinned_bytes, c.reserved, c.room);
    for (const request *r = h->e->pending_head; r; r = r->next)
        for (int i = 0; i < r->n_adapters; i++)
            print_message("pending %d of priority %d: adapter %d there %d pinned %d loading %d "
                          "asked %d denied %d bytes %zu\n",
                          (int)r->tag, r->seq.priority, i, r->adapters[i]->lora != NULL,
                          r->pinned[i], r->adapters[i]->loading, r->adapters[i]->asked,
                          (int)r->adapters[i]->denied_at, r->adapters[i]->bytes);
    fail_msg("locked up");
}

/* A host that answers late, in any order. When nothing can be computed something must be on its
 * way: else the engine is locked up. */
static void run_crowd(hall *h)
{
    int submitted = 0, steps = 0;

    while (h->ended < N_REQUESTS) {
        bool idle;

        if (submitted < N_REQUESTS && pick(2))
            util_submit(h->e, &h->crowd->requests[submitted++]);
        idle = !ol_engine_busy(h->e);
        if (h->n_asked && (pick(4) == 0 || idle))
            bring_one(h);
        else if (idle && h->under_way == 0)
            assert_true(submitted < N_REQUESTS);
        while (h->under_way && result_of(h->e, !ol_engine_busy(h->e)))
            h->under_way--;
        if (++steps == 200000)
            tell_hall(h, submitted);
        must(ol_engine_step(h->e, &err), &err);
        ol_sched_check(h->e->sched);
        take_events(h);
    }
    while (h->under_way && result_of(h->e, true))
        h->under_way--;
}

static void crowd_in(const crowd *c, int pages, bool loader, const util_result *want)
{
    static util_result have[N_REQUESTS];
    ol_engine_options options = options_of(pages);
    hall h = {.crowd = c, .results = have, .loader = loader};
    ol_engine_info info;

    options.context = 112;
    h.e = util_open(&options);
    h.e->patience_us = 3600000000u; /* time plays no part */
    run_crowd(&h);
    ol_engine_info_get(h.e, &info);
    print_message("%d pages: %llu evictions, %llu preemptions\n", pages,
                  (unsigned long long)info.adapter_evictions, (unsigned long long)info.preemptions);
    for (int i = 0; want && i < N_REQUESTS; i++) {
        assert_int_equal(have[i].n, want[i].n);
        assert_memory_equal(have[i].tokens, want[i].tokens, (size_t)want[i].n * sizeof(int32_t));
    }
    if (want) {
        assert_true(info.adapter_evictions > 10);
        assert_true(info.preemptions > 0 ||
                    pages > large_pages); /* small pools have too few pages */
    }
    expect_idle(h.e);
    ol_engine_close(h.e);
    util_free(have, N_REQUESTS);
}

static void run_crowds(bool mixed, int least, int most)
{
    static crowd c;
    static util_result want[N_REQUESTS];
    ol_engine_options options = options_of(0);
    hall h = {.crowd = &c, .results = want};

    make_crowd(&c, mixed);
    options.cache_bytes = 0;
    h.e = util_open(&options); /* each with memory of its own, and plenty */
    run_crowd(&h);
    ol_engine_close(h.e);
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
        cmocka_unit_test(test_parts_have_limits),
        cmocka_unit_test(test_offers),
        cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_crowd),
        cmocka_unit_test(test_crowd_with_large_ones),
    };

    return cmocka_run_group_tests(tests, make_store, free_store);
}
