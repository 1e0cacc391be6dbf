/* kvpages.c: see kvpages.h. The free list is a stack, so that the page used last, which
 * may still be in a processor's cache, is used next. */
#include "engine/kvpages.h"

#include <assert.h>
#include <stdlib.h>

/* Links of the idle list, by page. */
typedef struct link {
    int32_t prev, next;
} link;

struct ol_kvpages {
    int n_pages, page_tokens;
    int n_free, n_idle;
    int32_t *free; /* [n_free] page numbers */
    int32_t *refs; /* [n_pages] */
    bool *kept;    /* [n_pages] */
    link *links;   /* [n_pages] */
    int32_t idle_first, idle_last;
    ol_kvpages_forget forget;
    void *context;
};

ol_code ol_kvpages_create(int n_pages, int page_tokens, ol_kvpages **out, ol_error *err)
{
    ol_kvpages *pool = calloc(1, sizeof(*pool));
    size_t n = (size_t)n_pages;

    assert(n_pages > 0 && page_tokens > 0);
    if (pool) {
        pool->free = malloc(n * sizeof(int32_t));
        pool->refs = calloc(n, sizeof(int32_t));
        pool->kept = calloc(n, sizeof(bool));
        pool->links = calloc(n, sizeof(link));
    }
    if (!pool || !pool->free || !pool->refs || !pool->kept || !pool->links) {
        ol_kvpages_free(pool);
        return ol_fail_nomem(err, n * sizeof(int32_t), "the page table");
    }
    pool->n_pages = pool->n_free = n_pages;
    pool->page_tokens = page_tokens;
    pool->idle_first = pool->idle_last = OL_NO_PAGE;
    for (int i = 0; i < n_pages; i++)
        pool->free[i] = n_pages - 1 - i;
    *out = pool;
    return OL_OK;
}

void ol_kvpages_free(ol_kvpages *pool)
{
    if (!pool)
        return;
    free(pool->free);
    free(pool->refs);
    free(pool->kept);
    free(pool->links);
    free(pool);
}

/* -- idle pages --------------------------------------------------------------------- */

static void become_idle(ol_kvpages *pool, int32_t page)
{
    pool->links[page] = (link){pool->idle_last, OL_NO_PAGE};
    if (pool->idle_last == OL_NO_PAGE)
        pool->idle_first = page;
    else
        pool->links[pool->idle_last].next = page;
    pool->idle_last = page;
    pool->n_idle++;
}

static void leave_idle(ol_kvpages *pool, int32_t page)
{
    link at = pool->links[page];

    if (at.prev == OL_NO_PAGE)
        pool->idle_first = at.next;
    else
        pool->links[at.prev].next = at.next;
    if (at.next == OL_NO_PAGE)
        pool->idle_last = at.prev;
    else
        pool->links[at.next].prev = at.prev;
    pool->n_idle--;
}

static int32_t take_idle(ol_kvpages *pool)
{
    int32_t page = pool->idle_first;

    leave_idle(pool, page);
    pool->kept[page] = false;
    pool->forget(pool->context, page);
    return page;
}

/* -- references --------------------------------------------------------------------- */

int32_t ol_kvpages_alloc(ol_kvpages *pool)
{
    int32_t page;

    if (pool->n_free > 0)
        page = pool->free[--pool->n_free];
    else if (pool->n_idle > 0)
        page = take_idle(pool);
    else
        return OL_NO_PAGE;
    assert(pool->refs[page] == 0 && !pool->kept[page]);
    pool->refs[page] = 1;
    return page;
}

void ol_kvpages_share(ol_kvpages *pool, int32_t page)
{
    assert(page >= 0 && page < pool->n_pages && (pool->refs[page] > 0 || pool->kept[page]));
    if (pool->refs[page]++ == 0)
        leave_idle(pool, page);
}

void ol_kvpages_release(ol_kvpages *pool, int32_t page)
{
    assert(page >= 0 && page < pool->n_pages && pool->refs[page] > 0);
    if (--pool->refs[page] > 0)
        return;
    if (pool->kept[page]) {
        become_idle(pool, page);
        return;
    }
    assert(pool->n_free < pool->n_pages);
    pool->free[pool->n_free++] = page;
}

void ol_kvpages_keep(ol_kvpages *pool, int32_t page)
{
    assert(page >= 0 && page < pool->n_pages && pool->refs[page] > 0 && pool->forget);
    pool->kept[page] = true;
}

void ol_kvpages_on_forget(ol_kvpages *pool, ol_kvpages_forget forget, void *context)
{
    pool->forget = forget;
    pool->context = context;
}

/* -- facts ---------------------------------------------------------------------------- */

int ol_kvpages_total(const ol_kvpages *pool)
{
    return pool->n_pages;
}

int ol_kvpages_available(const ol_kvpages *pool)
{
    return pool->n_free + pool->n_idle;
}

int ol_kvpages_idle(const ol_kvpages *pool)
{
    return pool->n_idle;
}

int ol_kvpages_refs(const ol_kvpages *pool, int32_t page)
{
    assert(page >= 0 && page < pool->n_pages);
    return pool->refs[page];
}

int ol_kvpages_for(const ol_kvpages *pool, int n_tokens)
{
    return n_tokens / pool->page_tokens + (n_tokens % pool->page_tokens != 0);
}

int ol_kvpages_tokens(const ol_kvpages *pool)
{
    return pool->page_tokens;
}

/* -- page tables -------------------------------------------------------------------------- */

bool ol_pagetable_grow(ol_pagetable *table, ol_kvpages *pool, int n_tokens)
{
    int want = ol_kvpages_for(pool, n_tokens);

    assert(want <= table->max);
    if (want - table->n > ol_kvpages_available(pool))
        return false;
    while (table->n < want)
        table->pages[table->n++] = ol_kvpages_alloc(pool);
    return true;
}

void ol_pagetable_clear(ol_pagetable *table, ol_kvpages *pool)
{
    while (table->n > 0)
        ol_kvpages_release(pool, table->pages[--table->n]);
}
