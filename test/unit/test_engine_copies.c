/* test_engine_copies.c: adapters in the host's memory: which are kept, and that what the device
 * dropped comes back from there without the host of its request. */
#include "engine_store.h"

#include "engine/copies.h"
#include "engine/stats.h"

#include <poll.h>
#include <string.h>

static ol_error err;

/* -- the list ------------------------------------------------------------------------------ */

enum { BYTES = 1000, SLOTS = 6 };

typedef struct shelf {
    ol_copies copies;
    ol_copy *of[SLOTS];
    ol_arena *arena[SLOTS];
} shelf;

static size_t size_of_one(void)
{
    ol_arena *arena = ol_arena_create();
    size_t bytes = BYTES + ol_arena_bytes(arena);

    ol_arena_destroy(arena);
    return bytes;
}

static int buffers; /* that the device has given */

static void *give_memory(ol_device *device, size_t bytes)
{
    (void)device;
    buffers++;
    return malloc(bytes);
}

static void take_memory(ol_device *device, void *bytes)
{
    (void)device;
    buffers--;
    free(bytes);
}

static const ol_device_table device = {.host_alloc = give_memory, .host_free = take_memory};

static shelf make_shelf(size_t budget)
{
    return (shelf){.copies = {.budget = budget, .table = &device}};
}

/* Returns whether it was kept. */
static bool keep(shelf *s, int i, size_t len)
{
    ol_adapter_file file = {.max_rank = i};
    ol_arena *arena = ol_arena_create();
    ol_copy_buffer buffer = ol_copies_spare(&s->copies, len);
    bool kept;

    if (!buffer.bytes)
        buffer = ol_copies_memory(&s->copies, len);
    kept = ol_copies_keep(&s->copies, &s->of[i], &file, arena, &buffer);
    assert_true(s->copies.bytes <= s->copies.budget);
    ol_copies_give(&s->copies, &buffer);
    if (!kept)
        ol_arena_destroy(arena);
    return kept;
}

static void expect_kept(const shelf *s, const char *which)
{
    int n = 0;

    for (int i = 0; i < SLOTS; i++) {
        assert_int_equal(s->of[i] != NULL, strchr(which, '0' + i) != NULL);
        n += s->of[i] != NULL;
        if (s->of[i])
            assert_int_equal(s->of[i]->file.max_rank, i);
    }
    assert_int_equal(s->copies.n, n);
}

static void drop_all(shelf *s)
{
    for (int i = 0; i < SLOTS; i++)
        ol_copies_drop(&s->copies, s->of[i]);
    expect_kept(s, "");
    assert_int_equal(s->copies.bytes, 0);
    ol_copies_end(&s->copies);
    assert_int_equal(buffers, 0);
}

static void test_least_needed_goes(void **state)
{
    shelf s = make_shelf(3 * size_of_one());

    (void)state;
    for (int i = 0; i < 3; i++)
        assert_true(keep(&s, i, BYTES));
    ol_copies_touch(&s.copies, s.of[0]);
    assert_true(keep(&s, 3, BYTES));
    expect_kept(&s, "023");
    assert_true(keep(&s, 4, BYTES / 2));
    expect_kept(&s, "034");
    assert_true(keep(&s, 5, 2 * BYTES)); /* several go */
    expect_kept(&s, "45");
    drop_all(&s);
}

/* What went leaves its buffer to what comes, if that is about as large. */
static void test_buffers_serve_again(void **state)
{
    shelf s = make_shelf(2 * size_of_one());

    (void)state;
    for (int i = 0; i < SLOTS; i++)
        assert_true(keep(&s, i, BYTES - (size_t)i));
    expect_kept(&s, "45");
    assert_int_equal(buffers, 3); /* two, and what the last one to go has left */
    assert_true(keep(&s, 0, BYTES / 2));
    assert_int_equal(buffers, 4);
    for (int i = 0; i < 2 * SLOTS; i++) { /* no more than a few are spare */
        ol_copy_buffer buffer = ol_copies_memory(&s.copies, BYTES);

        ol_copies_give(&s.copies, &buffer);
    }
    assert_int_equal(buffers, s.copies.n + OL_COPY_SPARES);
    drop_all(&s);
}

static void test_readers_hold(void **state)
{
    shelf s = make_shelf(2 * size_of_one());

    (void)state;
    assert_true(keep(&s, 0, BYTES) && keep(&s, 1, BYTES));
    s.of[0]->readers = 1;
    assert_true(keep(&s, 2, BYTES));
    expect_kept(&s, "02");
    assert_false(keep(&s, 3, BYTES + 1)); /* for nothing would another go */
    expect_kept(&s, "02");
    s.of[2]->readers = 1;
    assert_false(keep(&s, 3, 1));
    s.of[0]->readers = s.of[2]->readers = 0;
    drop_all(&s);
}

static void test_no_budget_no_copies(void **state)
{
    shelf s = make_shelf(0);

    (void)state;
    assert_false(keep(&s, 0, 1));
    assert_int_equal(buffers, 0); /* nor memory for them */
    s.copies.budget = size_of_one() - 1;
    assert_false(keep(&s, 0, BYTES));
    expect_kept(&s, "");
    drop_all(&s);
}

/* -- a host -------------------------------------------------------------------------------- */

enum { N_ADAPTERS = 5, N_PROMPT = 4, N_OUTPUT = 4 };

static size_t one_bytes; /* on the device, of each of them */
static size_t one_copy;  /* in the host's memory: what was parsed counts, too */

static size_t offered_bytes(void)
{
    return store[0].weights.len + store[0].config.len;
}

static void offer(ol_engine *e, const ol_digest *digest)
{
    int i = 0;

    while (!ol_digest_equal(&store[i].digest, digest))
        i++;
    store_offer(e, &store[i]);
}

static void take_results(ol_engine *e)
{
    ol_adapter_result result;

    while (ol_engine_adapter_result(e, &result)) {
        must(result.code, &result.error);
        assert_non_null(result.offered);
        assert_true(result.bytes > 0);
        free(result.offered);
    }
}

/* What one request of adapter i gave; *asked: how often the host was asked for something. */
static void run_one(ol_engine *e, int i, int32_t *tokens, int *asked)
{
    ol_adapter_use use = {store[i].digest, 1.0f};
    ol_request q = util_request(7, store_prompt, N_PROMPT, N_OUTPUT);
    struct pollfd loaded = {.fd = ol_engine_adapter_fd(e), .events = POLLIN};
    bool done = false;
    ol_event event;

    q.adapters = &use;
    q.n_adapters = 1;
    util_submit(e, &q);
    while (!done) {
        while (ol_engine_poll(e, &event)) {
            if (event.kind == OL_EVENT_FAILED)
                must(event.error.code, &event.error);
            if (event.kind == OL_EVENT_NEED_ADAPTER) {
                offer(e, &event.digest);
                ++*asked;
            }
            if (event.kind == OL_EVENT_TOKEN)
                tokens[event.index] = event.token;
            done |= event.kind == OL_EVENT_DONE;
        }
        if (!done && !ol_engine_busy(e))
            (void)poll(&loaded, 1, -1);
        take_results(e);
        if (ol_engine_busy(e))
            must(ol_engine_step(e, &err), &err);
    }
}

static ol_engine *open_with(size_t adapter_bytes, size_t copy_bytes, size_t cache_bytes)
{
    ol_engine_options options = store_options();

    options.adapter_bytes = adapter_bytes;
    options.copy_bytes = copy_bytes;
    options.cache_bytes = cache_bytes;
    options.no_prefix_cache = true;
    return util_open(&options);
}

/* What each adapter says, with all of them in the cache. */
static int32_t want[N_ADAPTERS][N_OUTPUT];

static void learn_answers(void)
{
    ol_engine_info info;
    ol_engine *e;
    int asked = 0;

    e = open_with(0, OL_NO_COPIES, 0);
    for (int i = 0; i < N_ADAPTERS; i++)
        run_one(e, i, want[i], &asked);
    ol_engine_info_get(e, &info);
    assert_int_equal(asked, N_ADAPTERS);
    assert_int_equal(info.adapters, N_ADAPTERS);
    assert_int_equal(info.adapter_copies, 0);
    one_bytes = info.adapter_bytes / N_ADAPTERS;
    ol_engine_close(e);
    e = open_with(0, (size_t)64 << 20, 0);
    run_one(e, 0, want[0], &asked);
    ol_engine_info_get(e, &info);
    one_copy = info.adapter_copy_bytes;
    assert_true(one_copy >= offered_bytes());
    ol_engine_close(e);
}

static void expect_answer(ol_engine *e, int i, int *asked)
{
    int32_t tokens[N_OUTPUT];

    run_one(e, i, tokens, asked);
    assert_memory_equal(tokens, want[i], sizeof(tokens));
}

/* -- tests ------------------------------------------------------------------------------------ */

/* A place for one adapter on the device, and for all in the host's memory: each is asked for once.
 */
static void check_asked_once(size_t cache_bytes)
{
    ol_engine *e = open_with(one_bytes + one_bytes / 2, (size_t)64 << 20, cache_bytes);
    ol_engine_info info;
    int asked = 0;

    for (int round = 0; round < 3; round++)
        for (int i = 0; i < N_ADAPTERS; i++)
            expect_answer(e, i, &asked);
    assert_int_equal(asked, N_ADAPTERS);
    ol_engine_info_get(e, &info);
    assert_int_equal(info.adapters, 1);
    assert_int_equal(info.adapter_copies, N_ADAPTERS);
    assert_true(info.adapter_copy_bytes == N_ADAPTERS * one_copy);
    assert_int_equal(info.adapter_loads, 3 * N_ADAPTERS);
    assert_int_equal(info.adapter_copy_loads, 2 * N_ADAPTERS);
    util_expect_idle(e);
    ol_engine_close(e);
}

static void test_asked_once(void **state)
{
    (void)state;
    learn_answers();
    check_asked_once(0);
}

static void test_asked_once_in_a_pool(void **state)
{
    (void)state;
    learn_answers();
    check_asked_once((size_t)64 << 20);
}

/* With room for fewer copies, those that went are asked for again. */
static void test_copies_go(void **state)
{
    ol_engine *e;
    ol_engine_info info;
    int asked = 0;

    (void)state;
    learn_answers();
    e = open_with(one_bytes + one_bytes / 2, 3 * one_copy + one_copy / 2, 0);
    for (int i = 0; i < N_ADAPTERS; i++)
        expect_answer(e, i, &asked);
    ol_engine_info_get(e, &info);
    assert_int_equal(info.adapter_copies, 3);
    assert_true(info.adapter_copy_bytes <= 3 * one_copy + one_copy / 2);
    expect_answer(e, N_ADAPTERS - 2, &asked); /* the newest copies are there */
    assert_int_equal(asked, N_ADAPTERS);
    expect_answer(e, 0, &asked); /* the oldest is not */
    assert_int_equal(asked, N_ADAPTERS + 1);
    ol_engine_close(e);
}

static void test_no_copies_unless_wanted(void **state)
{
    ol_engine *e;
    int asked = 0;

    (void)state;
    learn_answers();
    e = open_with(one_bytes + one_bytes / 2, OL_NO_COPIES, 0);
    for (int i = 0; i < 4; i++)
        expect_answer(e, i % 2, &asked);
    assert_int_equal(asked, 4);
    ol_engine_close(e);
}

static ol_adapter_stat stat_of(const ol_engine *e, int i)
{
    ol_adapter_stat *stats, found = {0};
    int n = ol_engine_adapter_stats(e, &stats);

    for (int k = 0; k < n; k++)
        if (ol_digest_equal(&stats[k].digest, &store[i].digest))
            found = stats[k];
    free(stats);
    return found;
}

/* Counts that begin again do not cost the copies. */
static void test_seen_and_reset(void **state)
{
    ol_engine *e;
    int asked = 0;

    (void)state;
    learn_answers();
    e = open_with(one_bytes + one_bytes / 2, (size_t)64 << 20, 0);
    expect_answer(e, 0, &asked);
    expect_answer(e, 1, &asked);
    assert_true(stat_of(e, 0).copied && !stat_of(e, 0).resident);
    assert_true(stat_of(e, 1).copied && stat_of(e, 1).resident);
    ol_engine_adapter_stats_reset(e);
    expect_answer(e, 0, &asked);
    assert_int_equal(asked, 2);
    assert_int_equal(stat_of(e, 0).loads, 1);
    ol_engine_close(e);
}

/* An engine that ends, or a request that goes, while a copy is being placed. */
static void test_ends_in_the_middle(void **state)
{
    ol_adapter_use use;
    ol_request q = util_request(9, store_prompt, N_PROMPT, N_OUTPUT);

    (void)state;
    learn_answers();
    for (int close_at_once = 0; close_at_once < 2; close_at_once++) {
        ol_engine *e = open_with(one_bytes + one_bytes / 2, (size_t)64 << 20, 0);
        int asked = 0;

        expect_answer(e, 0, &asked);
        expect_answer(e, 1, &asked);
        use = (ol_adapter_use){store[0].digest, 1.0f};
        q.adapters = &use;
        q.n_adapters = 1;
        util_submit(e, &q);
        assert_true(stat_of(e, 0).loading);
        if (!close_at_once) {
            ol_engine_cancel(e, 9);
            expect_answer(e, 2, &asked);
            expect_answer(e, 0, &asked);
            assert_int_equal(asked, 3);
            util_expect_idle(e);
        }
        ol_engine_close(e);
    }
}

/* A crowd, in room for three adapters on the device and a few more in the host's memory: the same
 * tokens as with room for all of them. */
static void check_crowd(const crowd *c, const util_result *expected, bool pool)
{
    util_result have[CROWD_MOST] = {0};
    ol_engine_options options = store_options();
    ol_engine_info info;
    ol_engine *e;

    options.adapter_bytes = 3 * store_bytes + store_bytes / 2;
    options.cache_bytes = pool ? 5 * store_bytes : 0;
    options.copy_bytes = 6 * one_copy;
    options.context = 64;
    e = util_open(&options);
    crowd_run(e, c, have, true);
    ol_engine_info_get(e, &info);
    crowd_check_same(c, have, expected);
    /* How many depends on when loads end; that some do, and others could not, does not. */
    assert_true(info.adapter_copy_loads > 0);
    assert_true(info.adapter_loads > info.adapter_copy_loads);
    assert_true(info.adapter_copy_bytes <= options.copy_bytes);
    util_expect_idle(e);
    ol_engine_close(e);
    util_free(have, c->n);
}

static void test_crowd(void **state)
{
    static crowd c;
    util_result expected[CROWD_MOST] = {0};
    ol_engine *roomy;

    (void)state;
    learn_answers();
    crowd_make(&c, util_on_simt() ? 30 : CROWD_MOST, 2, 8, util_on_simt() ? 6 : 20);
    roomy = store_open(0);
    crowd_run(roomy, &c, expected, false);
    ol_engine_close(roomy);
    check_crowd(&c, expected, false);
    check_crowd(&c, expected, true);
    util_free(expected, c.n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_least_needed_goes),
        cmocka_unit_test(test_buffers_serve_again),
        cmocka_unit_test(test_readers_hold),
        cmocka_unit_test(test_no_budget_no_copies),
        cmocka_unit_test(test_asked_once),
        cmocka_unit_test(test_asked_once_in_a_pool),
        cmocka_unit_test(test_copies_go),
        cmocka_unit_test(test_no_copies_unless_wanted),
        cmocka_unit_test(test_seen_and_reset),
        cmocka_unit_test(test_ends_in_the_middle),
        cmocka_unit_test(test_crowd),
    };

    return cmocka_run_group_tests(tests, store_make, store_free);
}
