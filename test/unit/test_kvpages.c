/* test_kvpages.c: the page pool: random operations against a plain count of references. */
#include "engine/kvpages.h"
#include "noise.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static ol_kvpages *make(int n_pages, int page_tokens)
{
    ol_kvpages *pool;
    ol_error err;

    assert_int_equal(ol_kvpages_create(n_pages, page_tokens, &pool, &err), OL_OK);
    return pool;
}

static void test_all_pages_once(void **state)
{
    enum { N = 37 };
    ol_kvpages *pool = make(N, 16);
    bool seen[N] = {false};

    (void)state;
    for (int round = 0; round < 2; round++) {
        memset(seen, 0, sizeof(seen));
        for (int i = 0; i < N; i++) {
            int32_t page = ol_kvpages_alloc(pool);

            assert_in_range(page, 0, N - 1);
            assert_false(seen[page]);
            seen[page] = true;
        }
        assert_int_equal(ol_kvpages_alloc(pool), OL_NO_PAGE);
        assert_int_equal(ol_kvpages_available(pool), 0);
        for (int i = 0; i < N; i++)
            ol_kvpages_release(pool, i);
        assert_int_equal(ol_kvpages_available(pool), N);
    }
    ol_kvpages_free(pool);
}

static void test_rounding(void **state)
{
    ol_kvpages *pool = make(4, 16);

    (void)state;
    assert_int_equal(ol_kvpages_for(pool, 0), 0);
    assert_int_equal(ol_kvpages_for(pool, 1), 1);
    assert_int_equal(ol_kvpages_for(pool, 16), 1);
    assert_int_equal(ol_kvpages_for(pool, 17), 2);
    assert_int_equal(ol_kvpages_for(pool, INT32_MAX), INT32_MAX / 16 + 1);
    ol_kvpages_free(pool);
}

static void test_shared_page(void **state)
{
    ol_kvpages *pool = make(2, 16);
    int32_t page = ol_kvpages_alloc(pool);

    (void)state;
    ol_kvpages_share(pool, page);
    ol_kvpages_share(pool, page);
    assert_int_equal(ol_kvpages_refs(pool, page), 3);
    ol_kvpages_release(pool, page);
    ol_kvpages_release(pool, page);
    assert_int_equal(ol_kvpages_available(pool), 1);
    ol_kvpages_release(pool, page);
    assert_int_equal(ol_kvpages_available(pool), 2);
    assert_int_equal(ol_kvpages_refs(pool, page), 0);
    ol_kvpages_free(pool);
}

static void test_table_all_or_none(void **state)
{
    int32_t a[8], b[8];
    ol_pagetable first = {.pages = a, .max = 8}, second = {.pages = b, .max = 8};
    ol_kvpages *pool = make(8, 16);

    (void)state;
    assert_true(ol_pagetable_grow(&first, pool, 5 * 16));
    assert_false(ol_pagetable_grow(&second, pool, 4 * 16));
    assert_int_equal(second.n, 0);
    assert_int_equal(ol_kvpages_available(pool), 3);
    assert_true(ol_pagetable_grow(&second, pool, 3 * 16));
    assert_true(ol_pagetable_grow(&first, pool, 5 * 16)); /* nothing to do */
    assert_true(ol_pagetable_grow(&first, pool, 1));      /* never shrinks */
    assert_int_equal(first.n, 5);
    ol_pagetable_clear(&first, pool);
    assert_int_equal(first.n, 0);
    ol_pagetable_clear(&second, pool);
    assert_int_equal(ol_kvpages_available(pool), 8);
    ol_kvpages_free(pool);
}

/* -- random operations ---------------------------------------------------------------- */

enum { PAGES = 61, TABLES = 7, OWN = 16 };

typedef struct world {
    ol_kvpages *pool;
    int refs[PAGES]; /* what they must be */
    int32_t own[TABLES][PAGES];
    ol_pagetable tables[TABLES];
    int32_t loose[OWN]; /* references outside of tables, as a prefix cache holds them */
    int n_loose;
} world;

static void check_world(const world *w)
{
    int used = 0;

    for (int i = 0; i < PAGES; i++) {
        assert_int_equal(ol_kvpages_refs(w->pool, i), w->refs[i]);
        used += w->refs[i] > 0;
    }
    assert_int_equal(ol_kvpages_available(w->pool), PAGES - used);
}

static void grow_some(world *w)
{
    ol_pagetable *t = &w->tables[pick(TABLES)];
    int before = t->n, want = pick(PAGES * 16) + 1;
    int pages = ol_kvpages_for(w->pool, want), free_pages = ol_kvpages_available(w->pool);
    bool grew = ol_pagetable_grow(t, w->pool, want);

    assert_int_equal(grew, pages <= before || pages - before <= free_pages);
    assert_int_equal(t->n, grew && pages > before ? pages : before);
    for (int i = before; i < t->n; i++) {
        assert_int_equal(w->refs[t->pages[i]], 0);
        w->refs[t->pages[i]] = 1;
    }
}

static void clear_one(world *w)
{
    ol_pagetable *t = &w->tables[pick(TABLES)];

    for (int i = 0; i < t->n; i++)
        w->refs[t->pages[i]]--;
    ol_pagetable_clear(t, w->pool);
}

static void share_one(world *w)
{
    const ol_pagetable *t = &w->tables[pick(TABLES)];

    if (t->n == 0 || w->n_loose == OWN)
        return;
    w->loose[w->n_loose] = t->pages[pick(t->n)];
    ol_kvpages_share(w->pool, w->loose[w->n_loose]);
    w->refs[w->loose[w->n_loose++]]++;
}

static void release_one(world *w)
{
    int at;

    if (w->n_loose == 0)
        return;
    at = pick(w->n_loose);
    ol_kvpages_release(w->pool, w->loose[at]);
    w->refs[w->loose[at]]--;
    w->loose[at] = w->loose[--w->n_loose];
}

static void test_random_operations(void **state)
{
    static void (*const operations[])(world *) = {grow_some, clear_one, share_one, release_one};
    static world w;

    (void)state;
    w.pool = make(PAGES, 16);
    for (int i = 0; i < TABLES; i++)
        w.tables[i] = (ol_pagetable){.pages = w.own[i], .max = PAGES};
    for (int i = 0; i < 200000; i++) {
        operations[pick(4)](&w);
        if (i % 16 == 0)
            check_world(&w);
    }
    while (w.n_loose)
        release_one(&w);
    for (int i = 0; i < TABLES; i++)
        ol_pagetable_clear(&w.tables[i], w.pool);
    assert_int_equal(ol_kvpages_available(w.pool), PAGES);
    ol_kvpages_free(w.pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_pages_once),    cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_shared_page),       cmocka_unit_test(test_table_all_or_none),
        cmocka_unit_test(test_random_operations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
