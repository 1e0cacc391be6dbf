/*
 * test_prefix.c: the prefix cache alone. What a page holds is written into a table of
 * tokens, so that a page found for other tokens shows.
 */
#include "engine/prefix.h"
#include "noise.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PAGE 4

typedef struct fixture {
    ol_kvpages *pool;
    ol_prefix_cache *prefix;
} fixture;

static fixture make(int n_pages)
{
    fixture f;
    ol_error err;

    assert_int_equal(ol_kvpages_create(n_pages, PAGE, &f.pool, &err), OL_OK);
    assert_int_equal(ol_prefix_create(f.pool, &f.prefix, &err), OL_OK);
    return f;
}

static void unmake(fixture *f)
{
    assert_int_equal(ol_kvpages_available(f->pool), ol_kvpages_total(f->pool));
    ol_prefix_free(f->prefix);
    ol_kvpages_free(f->pool);
}

static ol_prefix_context *context(fixture *f, int which, float weight)
{
    ol_digest digest = {{(uint8_t)which}};

    return ol_prefix_ref(f->prefix, &digest, &weight, which ? 1 : 0);
}

/* Computes all of the tokens' full pages, and lets go of them. */
static void compute(fixture *f, ol_prefix_context *c, const int32_t *tokens, int n)
{
    int32_t pages[64];
    double energy[OL_PREFIX_ADAPTERS] = {0};
    ol_pagetable table = {.pages = pages, .max = 64};

    table.n = ol_prefix_find(f->prefix, c, tokens, n, pages, energy);
    for (int i = table.n; i < n / PAGE; i++) {
        assert_true(ol_pagetable_grow(&table, f->pool, (i + 1) * PAGE));
        energy[0] += i + 1;
        ol_prefix_add(f->prefix, c, tokens, pages, i, energy);
    }
    ol_pagetable_clear(&table, f->pool);
}

/* How many tokens are found. */
static int found(fixture *f, ol_prefix_context *c, const int32_t *tokens, int n)
{
    int32_t pages[64];
    double energy[OL_PREFIX_ADAPTERS] = {0};
    ol_pagetable table = {.pages = pages, .max = 64};

    table.n = ol_prefix_find(f->prefix, c, tokens, n, pages, energy);
    n = table.n * PAGE;
    if (c != NULL && table.n > 0 && energy[0] > 0)
        assert_true(energy[0] == table.n * (table.n + 1) / 2.0);
    ol_pagetable_clear(&table, f->pool);
    return n;
}

static void test_only_the_same_is_found(void **state)
{
    int32_t tokens[16], other[16];
    fixture f = make(32);
    ol_prefix_context *base = context(&f, 0, 0), *one = context(&f, 1, 1),
                      *half = context(&f, 1, 0.5f), *two = context(&f, 2, 1);

    (void)state;
    for (int i = 0; i < 16; i++)
        tokens[i] = other[i] = i;
    other[9] = 99;
    assert_int_equal(found(&f, one, tokens, 16), 0);
    compute(&f, one, tokens, 16);
    assert_int_equal(found(&f, one, tokens, 16), 16);
    assert_int_equal(found(&f, one, tokens, 15), 12); /* whole pages */
    assert_int_equal(found(&f, one, tokens, 3), 0);
    assert_int_equal(found(&f, one, other, 16), 8); /* up to where they differ */
    /* another adapter, another weight of the same, none */
    assert_int_equal(found(&f, two, tokens, 16), 0);
    assert_int_equal(found(&f, half, tokens, 16), 0);
    assert_int_equal(found(&f, base, tokens, 16), 0);
    /* the same tokens elsewhere are something else */
    assert_int_equal(found(&f, one, tokens + 4, 12), 0);
    ol_prefix_unref(f.prefix, two);
    ol_prefix_unref(f.prefix, half);
    ol_prefix_unref(f.prefix, base);
    ol_prefix_unref(f.prefix, one);
    /* contexts that nobody refers to live on with their pages */
    one = context(&f, 1, 1);
    assert_int_equal(found(&f, one, tokens, 16), 16);
    ol_prefix_unref(f.prefix, one);
    unmake(&f);
}

/* Two that compute the same at the same time end with one set of pages. */
static void test_twins_share(void **state)
{
    int32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8}, a[2], b[2];
    double energy[OL_PREFIX_ADAPTERS] = {0};
    fixture f = make(8);
    ol_prefix_context *c = context(&f, 0, 0);
    ol_pagetable ta = {.pages = a, .max = 2}, tb = {.pages = b, .max = 2};

    (void)state;
    assert_true(ol_pagetable_grow(&ta, f.pool, 8) && ol_pagetable_grow(&tb, f.pool, 8));
    assert_int_equal(ol_kvpages_available(f.pool), 4);
    for (int i = 0; i < 2; i++) {
        ol_prefix_add(f.prefix, c, tokens, a, i, energy);
        ol_prefix_add(f.prefix, c, tokens, b, i, energy);
        assert_int_equal(a[i], b[i]);
        assert_int_equal(ol_kvpages_refs(f.pool, a[i]), 2);
    }
    assert_int_equal(ol_kvpages_available(f.pool), 6);
    ol_pagetable_clear(&ta, f.pool);
    assert_int_equal(ol_kvpages_idle(f.pool), 0);
    ol_pagetable_clear(&tb, f.pool);
    assert_int_equal(ol_kvpages_idle(f.pool), 2);
    ol_prefix_unref(f.prefix, c);
    unmake(&f);
}

/* Room is made from the end of what was used longest ago. */
static void test_oldest_go_first(void **state)
{
    int32_t first[12], second[12], more[4] = {9, 9, 9, 9}, page;
    fixture f = make(6);
    ol_prefix_context *c = context(&f, 0, 0);

    (void)state;
    for (int i = 0; i < 12; i++) {
        first[i] = i;
        second[i] = 100 + i;
    }
    compute(&f, c, first, 12);
    compute(&f, c, second, 12);
    assert_int_equal(ol_kvpages_idle(f.pool), 6);
    (void)found(&f, c, first, 12); /* used again */
    compute(&f, c, more, 4);
    assert_int_equal(found(&f, c, second, 12), 8);
    assert_int_equal(found(&f, c, first, 12), 12);
    while ((page = ol_kvpages_alloc(f.pool)) != OL_NO_PAGE)
        assert_int_equal(ol_kvpages_refs(f.pool, page), 1);
    assert_int_equal(found(&f, c, first, 12), 0);
    for (int32_t i = 0; i < 6; i++)
        ol_kvpages_release(f.pool, i);
    ol_prefix_unref(f.prefix, c);
    unmake(&f);
}

/* -- any order of anything ---------------------------------------------------------------- */

enum { WORLD_PAGES = 40, WORLD_SEQS = 8, WORLD_TOKENS = 48 };

typedef struct world_seq {
    bool live;
    int which, n, computed;
    int32_t tokens[WORLD_TOKENS], pages[WORLD_TOKENS / PAGE];
    ol_pagetable table;
    ol_prefix_context *context;
} world_seq;

typedef struct world {
    fixture f;
    world_seq seqs[WORLD_SEQS];
    int32_t holds[WORLD_PAGES][PAGE + 1]; /* context and tokens written into the page */
    int hits;
} world;

static void begin(world *w, world_seq *s)
{
    double energy[OL_PREFIX_ADAPTERS];

    *s = (world_seq){.live = true, .which = pick(3), .n = 1 + pick(WORLD_TOKENS)};
    for (int i = 0; i < s->n; i++)
        s->tokens[i] = i < 20 ? i / 8 % (1 + s->which) : pick(2);
    s->table = (ol_pagetable){.pages = s->pages, .max = WORLD_TOKENS / PAGE};
    s->context = context(&w->f, s->which, 1);
    s->table.n = ol_prefix_find(w->f.prefix, s->context, s->tokens, s->n, s->pages, energy);
    s->computed = s->table.n * PAGE;
    w->hits += s->table.n;
    for (int i = 0; i < s->computed; i++) { /* exactly what was asked for */
        assert_int_equal(w->holds[s->pages[i / PAGE]][0], s->which);
        assert_int_equal(w->holds[s->pages[i / PAGE]][1 + i % PAGE], s->tokens[i]);
    }
}

static void end(world *w, world_seq *s)
{
    ol_pagetable_clear(&s->table, w->f.pool);
    ol_prefix_unref(w->f.prefix, s->context);
    s->live = false;
}

static void advance(world *w, world_seq *s)
{
    double energy[OL_PREFIX_ADAPTERS] = {0};

    if (s->computed == s->n || !ol_pagetable_grow(&s->table, w->f.pool, s->computed + 1)) {
        end(w, s);
        return;
    }
    assert_int_equal(ol_kvpages_refs(w->f.pool, s->pages[s->computed / PAGE]), 1);
    w->holds[s->pages[s->computed / PAGE]][0] = s->which;
    w->holds[s->pages[s->computed / PAGE]][1 + s->computed % PAGE] = s->tokens[s->computed];
    if (++s->computed % PAGE == 0)
        ol_prefix_add(w->f.prefix, s->context, s->tokens, s->pages, s->computed / PAGE - 1, energy);
}

static void test_random_worlds(void **state)
{
    static world w;

    (void)state;
    w.f = make(WORLD_PAGES);
    for (int step = 0; step < 200000; step++) {
        world_seq *s = &w.seqs[pick(WORLD_SEQS)];

        if (!s->live)
            begin(&w, s);
        else if (pick(40) == 0)
            end(&w, s);
        else
            advance(&w, s);
    }
    for (int i = 0; i < WORLD_SEQS; i++)
        if (w.seqs[i].live)
            end(&w, &w.seqs[i]);
    assert_true(w.hits > 1000);
    unmake(&w.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_the_same_is_found),
        cmocka_unit_test(test_twins_share),
        cmocka_unit_test(test_oldest_go_first),
        cmocka_unit_test(test_random_worlds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
