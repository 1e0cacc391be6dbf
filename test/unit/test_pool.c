/* test_pool.c: a pool of pages with a guest: random operations of both against a plain map of who
 * has which page; what goes first; neighbours. */
#include "engine/kvpages.h"
#include "noise.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MOST_PAGES = 150, BLOCKS = 24, MOST_RUNS = 8 };

/* -- the model ---------------------------------------------------------------------------- */

typedef struct block {
    bool there, pinned;
    int n, run;
    int32_t first[MOST_RUNS];
    uint64_t since; /* idle */
} block;

typedef enum owner { NOBODY, READER, IDLER, BLOCK } owner;

typedef struct world {
    ol_kvpages *pool;
    int n_pages, most;
    owner owner[MOST_PAGES]; /* and of what */
    int number[MOST_PAGES];  /* READER: references; BLOCK: which */
    bool kept[MOST_PAGES];
    uint64_t since[MOST_PAGES];
    block blocks[BLOCKS];
    uint64_t last; /* since when what went last had been idle, in this operation */
} world;

static int count(const world *w, owner of)
{
    int n = 0;

    for (int i = 0; i < w->n_pages; i++)
        n += w->owner[i] == of;
    return n;
}

static int idle_of_guest(void *context)
{
    const world *w = context;
    int n = 0;

    for (int i = 0; i < BLOCKS; i++)
        if (w->blocks[i].there && !w->blocks[i].pinned)
            n += w->blocks[i].n * w->blocks[i].run;
    return n;
}

static block *oldest_block(world *w)
{
    block *oldest = NULL;

    for (int i = 0; i < BLOCKS; i++) {
        block *b = &w->blocks[i];

        if (b->there && !b->pinned && (!oldest || b->since < oldest->since))
            oldest = b;
    }
    return oldest;
}

static uint64_t oldest_of_guest(void *context)
{
    const block *b = oldest_block(context);

    return b ? b->since : UINT64_MAX;
}

/* Nothing that is idle has been so for longer. */
static void goes(world *w, uint64_t since)
{
    assert_true(since > w->last);
    w->last = since;
    for (int i = 0; i < w->n_pages; i++)
        assert_false(w->owner[i] == IDLER && w->since[i] < since);
}

static void remove_block(world *w, block *b)
{
    for (int i = 0; i < b->n; i++)
        for (int k = 0; k < b->run; k++)
            w->owner[b->first[i] + k] = NOBODY;
    b->there = false;
    ol_kvpages_return(w->pool, b->n, b->run, b->first);
}

static void drop_of_guest(void *context)
{
    world *w = context;
    block *b = oldest_block(w);

    goes(w, b->since);
    remove_block(w, b);
}

static void forget(void *context, int32_t page)
{
    world *w = context;

    assert_int_equal(w->owner[page], IDLER);
    for (int i = 0; i < w->n_pages; i++) /* of pages the first; of all only if there is no limit */
        assert_false(w->owner[i] == IDLER && w->since[i] < w->since[page]);
    if (w->most == w->n_pages && oldest_block(w))
        assert_true(oldest_block(w)->since > w->since[page]);
    w->owner[page] = NOBODY;
    w->kept[page] = false;
}

static void open_world(world *w, int n_pages, int most)
{
    ol_error err;

    *w = (world){.n_pages = n_pages, .most = most};
    assert_int_equal(ol_kvpages_create(n_pages, 16, &w->pool, &err), OL_OK);
    ol_kvpages_on_forget(w->pool, forget, w);
    ol_kvpages_invite(w->pool,
                      &(ol_kvpages_guest){idle_of_guest, oldest_of_guest, drop_of_guest, w});
    ol_kvpages_limit(w->pool, most);
}

static void check_world(const world *w)
{
    int used = count(w, READER),
        room = count(w, NOBODY) + count(w, IDLER) + idle_of_guest((void *)(uintptr_t)w);

    if (room > w->most - used)
        room = w->most - used;
    assert_int_equal(ol_kvpages_available(w->pool), room);
    assert_int_equal(ol_kvpages_used(w->pool), used);
    assert_int_equal(ol_kvpages_idle(w->pool), count(w, IDLER));
    assert_int_equal(ol_kvpages_lent(w->pool), count(w, BLOCK));
    assert_true(used + count(w, IDLER) <= w->most);
    for (int i = 0; i < w->n_pages; i++) {
        assert_int_equal(ol_kvpages_is_lent(w->pool, i), w->owner[i] == BLOCK);
        assert_int_equal(ol_kvpages_refs(w->pool, i), w->owner[i] == READER ? w->number[i] : 0);
    }
}

/* -- what may happen ------------------------------------------------------------------------ */

static void take_page(world *w)
{
    bool can = ol_kvpages_available(w->pool) > 0;
    int32_t page;

    w->last = 0;
    page = ol_kvpages_alloc(w->pool);
    assert_int_equal(page != OL_NO_PAGE, can);
    if (!can)
        return;
    assert_int_equal(w->owner[page], NOBODY);
    w->owner[page] = READER;
    w->number[page] = 1;
    w->kept[page] = false;
}

static int some(const world *w, owner of)
{
    int at = pick(w->n_pages);

    for (int i = 0; i < w->n_pages; i++, at = (at + 1) % w->n_pages)
        if (w->owner[at] == of)
            return at;
    return -1;
}

static void share_page(world *w)
{
    int page = some(w, pick(2) ? READER : IDLER);

    if (page < 0)
        return;
    if (w->owner[page] == IDLER && count(w, READER) + count(w, IDLER) > w->most)
        return;
    ol_kvpages_share(w->pool, page);
    w->number[page] = w->owner[page] == READER ? w->number[page] + 1 : 1;
    w->owner[page] = READER;
}

static void keep_page(world *w)
{
    int page = some(w, READER);

    if (page < 0)
        return;
    ol_kvpages_keep(w->pool, page);
    w->kept[page] = true;
}

static void release_page(world *w)
{
    int page = some(w, READER);

    if (page < 0)
        return;
    if (--w->number[page] == 0) {
        w->owner[page] = w->kept[page] ? IDLER : NOBODY;
        w->since[page] = ol_kvpages_now(w->pool);
    }
    ol_kvpages_release(w->pool, page);
}

static block *free_block(world *w)
{
    for (int i = 0; i < BLOCKS; i++)
        if (!w->blocks[i].there)
            return &w->blocks[i];
    return NULL;
}

static void take_block(world *w)
{
    block *b = free_block(w), want = {.there = true, .pinned = true};
    bool enough;

    if (!b)
        return;
    want.n = 1 + pick(MOST_RUNS);
    want.run = 1 + (pick(3) == 0 ? pick(6) : 0);
    w->last = 0;
    enough = want.n * want.run <= count(w, NOBODY) + count(w, IDLER) + idle_of_guest(w);
    if (!ol_kvpages_lend(w->pool, want.n, want.run, want.first)) {
        assert_true(!enough || want.run > 1); /* neighbours may be missing */
        return;
    }
    assert_true(enough);
    for (int i = 0; i < want.n; i++)
        for (int k = 0; k < want.run; k++) {
            assert_in_range(want.first[i] + k, 0, w->n_pages - 1);
            assert_int_equal(w->owner[want.first[i] + k], NOBODY);
            w->owner[want.first[i] + k] = BLOCK;
        }
    b = free_block(w); /* others may have gone meanwhile */
    *b = want;
}

static void pin_or_unpin(world *w)
{
    block *b = &w->blocks[pick(BLOCKS)];

    if (!b->there)
        return;
    b->pinned = !b->pinned;
    if (!b->pinned)
        b->since = ol_kvpages_now(w->pool);
}

static void give_block(world *w)
{
    block *b = &w->blocks[pick(BLOCKS)];

    if (b->there && pick(4) == 0)
        remove_block(w, b);
}

static void random_world(int n_pages, int most)
{
    static void (*const operations[])(world *) = {take_page,    share_page,   keep_page,
                                                  release_page, take_block,   pin_or_unpin,
                                                  give_block,   release_page, take_page};
    static world w;

    open_world(&w, n_pages, most);
    for (int i = 0; i < 60000; i++) {
        operations[pick(9)](&w);
        if (i % 8 == 0)
            check_world(&w);
    }
    check_world(&w);
    ol_kvpages_free(w.pool);
}

static void test_random_operations(void **state)
{
    (void)state;
    random_world(MOST_PAGES, MOST_PAGES);
    random_world(64, 64);
    random_world(65, 65);
    random_world(100, 30); /* few may hold keys and values */
}

/* -- what goes first -------------------------------------------------------------------------- */

static world one;

static int add_block(world *w, int n, int run)
{
    for (int i = 0; i < BLOCKS; i++)
        if (!w->blocks[i].there) {
            block *b = &w->blocks[i];

            *b = (block){.there = true, .n = n, .run = run, .since = UINT64_MAX};
            assert_true(ol_kvpages_lend(w->pool, n, run, b->first));
            for (int r = 0; r < n; r++)
                for (int k = 0; k < run; k++)
                    w->owner[b->first[r] + k] = BLOCK;
            b->since = ol_kvpages_now(w->pool);
            return i;
        }
    return -1;
}

static int32_t add_idle_page(world *w)
{
    int32_t page = ol_kvpages_alloc(w->pool);

    w->owner[page] = READER;
    w->number[page] = 1;
    ol_kvpages_keep(w->pool, page);
    w->owner[page] = IDLER;
    w->since[page] = ol_kvpages_now(w->pool);
    ol_kvpages_release(w->pool, page);
    return page;
}

/* Pages and blocks in the order in which they became idle, whoever asks. */
static void test_one_order(void **state)
{
    int32_t pages[2], got[8];
    int blocks[2];

    (void)state;
    open_world(&one, 6, 6);
    pages[0] = add_idle_page(&one);
    blocks[0] = add_block(&one, 2, 1);
    pages[1] = add_idle_page(&one);
    blocks[1] = add_block(&one, 2, 1);
    take_page(&one);
    assert_int_equal(one.owner[pages[0]], READER); /* it went, and was taken again */
    assert_true(one.blocks[blocks[0]].there);
    take_page(&one);
    assert_false(one.blocks[blocks[0]].there);
    assert_int_equal(one.owner[pages[1]], IDLER);
    assert_true(ol_kvpages_lend(one.pool, 2, 1, got)); /* one is free; then the second page goes */
    assert_int_equal(one.owner[pages[1]], NOBODY);
    assert_true(one.blocks[blocks[1]].there);
    assert_false(ol_kvpages_lend(one.pool, 3, 1, got)); /* none goes for what cannot be */
    assert_true(one.blocks[blocks[1]].there);
    ol_kvpages_free(one.pool);
}

/* Pinned blocks and pages in use stay, and runs are found between them. */
static void test_neighbours(void **state)
{
    int32_t got[4], page;

    (void)state;
    open_world(&one, 20, 20);
    for (int i = 0; i < 20; i++)
        take_page(&one);
    for (int i = 0; i < 20; i++)
        if (i % 5 != 0) { /* 1 .. 4, 6 .. 9 and so on are free */
            one.owner[i] = NOBODY;
            ol_kvpages_release(one.pool, i);
        }
    assert_false(ol_kvpages_lend(one.pool, 1, 5, got));
    assert_false(ol_kvpages_lend(one.pool, 5, 3, got));
    assert_true(ol_kvpages_lend(one.pool, 4, 3, got));
    for (int i = 0; i < 4; i++)
        assert_int_equal(got[i], 17 - 5 * i); /* the last ones */
    page = ol_kvpages_alloc(one.pool);
    assert_int_equal(page, 1); /* pages take the first ones */
    ol_kvpages_return(one.pool, 4, 3, got);
    assert_false(ol_kvpages_lend(one.pool, 4, 4, got));
    assert_true(ol_kvpages_lend(one.pool, 3, 4, got));
    ol_kvpages_free(one.pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_operations),
        cmocka_unit_test(test_one_order),
        cmocka_unit_test(test_neighbours),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
