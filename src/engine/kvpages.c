/* kvpages.c: see kvpages.h. The free list is a stack, so that the page used last, which
 * may still be in a processor's cache, is used next. */
#include "engine/kvpages.h"

#include <assert.h>
#include <stdlib.h>

struct ol_kvpages {
    int n_pages, page_tokens;
    int n_free;
    int32_t *free; /* [n_free] page numbers */
    int32_t *refs; /* [n_pages] */
};

ol_code ol_kvpages_create(int n_pages, int page_tokens, ol_kvpages **out, ol_error *err)
{
    ol_kvpages *pool = calloc(1, sizeof(*pool));
    size_t bytes = (size_t)n_pages * sizeof(int32_t);

    assert(n_pages > 0 && page_tokens > 0);
    if (pool) {
        pool->free = malloc(bytes);
        pool->refs = calloc(1, bytes);
    }
    if (!pool || !pool->free || !pool->refs) {
        ol_kvpages_free(pool);
        return ol_fail_nomem(err, bytes, "the page table");
    }
    pool->n_pages = pool->n_free = n_pages;
    pool->page_tokens = page_tokens;
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
    free(pool);
}

int32_t ol_kvpages_alloc(ol_kvpages *pool)
{
    int32_t page;

    if (pool->n_free == 0)
        return OL_NO_PAGE;
    page = pool->free[--pool->n_free];
    assert(pool->refs[page] == 0);
    pool->refs[page] = 1;
    return page;
}

void ol_kvpages_share(ol_kvpages *pool, int32_t page)
{
    assert(page >= 0 && page < pool->n_pages && pool->refs[page] > 0);
    pool->refs[page]++;
}

void ol_kvpages_release(ol_kvpages *pool, int32_t page)
{
    assert(page >= 0 && page < pool->n_pages && pool->refs[page] > 0);
    if (--pool->refs[page] == 0) {
        assert(pool->n_free < pool->n_pages);
        pool->free[pool->n_free++] = page;
    }
}

int ol_kvpages_total(const ol_kvpages *pool)
{
    return pool->n_pages;
}

int ol_kvpages_available(const ol_kvpages *pool)
{
    return pool->n_free;
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

bool ol_pagetable_grow(ol_pagetable *table, ol_kvpages *pool, int n_tokens)
{
    int want = ol_kvpages_for(pool, n_tokens);

    assert(want <= table->max);
    if (want - table->n > pool->n_free)
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
