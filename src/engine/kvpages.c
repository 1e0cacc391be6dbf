/* kvpages.c: see kvpages.h. Free pages are bits. */
#include "engine/kvpages.h"

#include <assert.h>
#include <stdlib.h>

#define WORD 64
#define TRIES 64 /* of finding neighbours, while what lies idle goes */

/* Links of the idle list, by page. */
typedef struct link {
    int32_t prev, next;
    uint64_t since;
} link;

struct ol_kvpages {
    int n_pages, page_tokens, most;
    int n_free, n_idle, n_used, n_lent;
    uint64_t *free;    /* bit per page */
    int first_word;    /* no page before that word is free */
    int32_t *refs;     /* [n_pages] */
    bool *kept, *lent; /* [n_pages] */
    link *links;       /* [n_pages] */
    int32_t idle_first, idle_last;
    uint64_t now, releases;
    ol_kvpages_forget forget;
    void *context;
    ol_kvpages_guest guest;
};

static int words(int n_pages)
{
    return (n_pages + WORD - 1) / WORD;
}

ol_code ol_kvpages_create(int n_pages, int page_tokens, ol_kvpages **out, ol_error *err)
{
    ol_kvpages *pool = calloc(1, sizeof(*pool));
    size_t n = (size_t)n_pages;

    assert(n_pages > 0 && page_tokens > 0);
    if (pool) {
        pool->free = calloc((size_t)words(n_pages), sizeof(uint64_t));
        pool->refs = calloc(n, sizeof(int32_t));
        pool->kept = calloc(n, sizeof(bool));
        pool->lent = calloc(n, sizeof(bool));
        pool->links = calloc(n, sizeof(link));
    }
    if (!pool || !pool->free || !pool->refs || !pool->kept || !pool->lent || !pool->links) {
        ol_kvpages_free(pool);
        return ol_fail_nomem(err, n * sizeof(int32_t), "the page table");
    }
    pool->n_pages = pool->n_free = pool->most = n_pages;
    pool->page_tokens = page_tokens;
    pool->idle_first = pool->idle_last = OL_NO_PAGE;
    for (int i = 0; i < n_pages; i++)
        pool->free[i / WORD] |= (uint64_t)1 << i % WORD;
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
    free(pool->lent);
    free(pool->links);
    free(pool);
}

/* -- free pages ----------------------------------------------------------------------- */

static bool is_free(const ol_kvpages *pool, int32_t page)
{
    return pool->free[page / WORD] >> page % WORD & 1;
}

static void become_free(ol_kvpages *pool, int32_t page)
{
    assert(!is_free(pool, page) && pool->refs[page] == 0 && !pool->kept[page]);
    pool->free[page / WORD] |= (uint64_t)1 << page % WORD;
    if (page / WORD < pool->first_word)
        pool->first_word = page / WORD;
    pool->n_free++;
}

static void leave_free(ol_kvpages *pool, int32_t page)
{
    assert(is_free(pool, page));
    pool->free[page / WORD] &= ~((uint64_t)1 << page % WORD);
    pool->n_free--;
}

static int32_t first_free(ol_kvpages *pool)
{
    assert(pool->n_free > 0);
    while (!pool->free[pool->first_word])
        pool->first_word++;
    return pool->first_word * WORD + __builtin_ctzll(pool->free[pool->first_word]);
}

/* -- idle pages --------------------------------------------------------------------- */

static void become_idle(ol_kvpages *pool, int32_t page)
{
    pool->links[page] = (link){pool->idle_last, OL_NO_PAGE, ++pool->now};
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

static void drop_idle(ol_kvpages *pool)
{
    int32_t page = pool->idle_first;

    leave_idle(pool, page);
    pool->kept[page] = false;
    pool->forget(pool->context, page);
    become_free(pool, page);
}

/* -- room ----------------------------------------------------------------------------- */

static int guest_idle(const ol_kvpages *pool)
{
    return pool->guest.idle ? pool->guest.idle(pool->guest.context) : 0;
}

/* What became idle first goes; false when there is nothing. */
static bool drop_oldest(ol_kvpages *pool)
{
    uint64_t theirs = pool->guest.oldest ? pool->guest.oldest(pool->guest.context) : UINT64_MAX;
    uint64_t ours = pool->n_idle > 0 ? pool->links[pool->idle_first].since : UINT64_MAX;

    if (ours == UINT64_MAX && theirs == UINT64_MAX)
        return false;
    if (ours < theirs)
        drop_idle(pool);
    else
        pool->guest.drop(pool->guest.context);
    return true;
}

/* -- references --------------------------------------------------------------------- */

int32_t ol_kvpages_alloc(ol_kvpages *pool)
{
    int32_t page;

    if (ol_kvpages_available(pool) <= 0)
        return OL_NO_PAGE;
    if (pool->n_used + pool->n_idle >= pool->most)
        drop_idle(pool);
    while (pool->n_free == 0 && drop_oldest(pool))
        ;
    page = first_free(pool);
    leave_free(pool, page);
    assert(pool->refs[page] == 0 && !pool->kept[page] && !pool->lent[page]);
    pool->refs[page] = 1;
    pool->n_used++;
    return page;
}

void ol_kvpages_share(ol_kvpages *pool, int32_t page)
{
    assert(page >= 0 && page < pool->n_pages && (pool->refs[page] > 0 || pool->kept[page]));
    if (pool->refs[page]++ > 0)
        return;
    leave_idle(pool, page);
    pool->n_used++;
}

void ol_kvpages_release(ol_kvpages *pool, int32_t page)
{
    assert(page >= 0 && page < pool->n_pages && pool->refs[page] > 0);
    if (--pool->refs[page] > 0)
        return;
    pool->n_used--;
    pool->releases++;
    if (pool->kept[page])
        become_idle(pool, page);
    else
        become_free(pool, page);
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

/* -- the guest ------------------------------------------------------------------------ */

void ol_kvpages_invite(ol_kvpages *pool, const ol_kvpages_guest *guest)
{
    pool->guest = *guest;
}

uint64_t ol_kvpages_now(ol_kvpages *pool)
{
    return ++pool->now;
}

/* Runs of free neighbours, from the last page down: how many of n there are. */
static int find_runs(const ol_kvpages *pool, int n, int run, int32_t *first)
{
    int found = 0, length = 0;

    for (int32_t page = pool->n_pages - 1; page >= 0 && found < n; page--) {
        if (!pool->free[page / WORD]) {
            length = 0;
            page -= page % WORD;
            continue;
        }
        length = is_free(pool, page) ? length + 1 : 0;
        if (length == run) {
            first[found++] = page;
            length = 0;
        }
    }
    return found;
}

/* Until so many pages are free; false when not one more was to be had. */
static bool make_free(ol_kvpages *pool, int n_free)
{
    int before = pool->n_free;

    while (pool->n_free < n_free && drop_oldest(pool))
        ;
    return pool->n_free > before;
}

bool ol_kvpages_lend(ol_kvpages *pool, int n, int run, int32_t *first)
{
    int64_t need = (int64_t)n * run;
    int step = pool->n_pages / TRIES, found;

    assert(n > 0 && run > 0);
    if (need > (int64_t)pool->n_free + pool->n_idle + guest_idle(pool))
        return false;
    if (pool->n_free < need && !make_free(pool, (int)need))
        return false;
    while ((found = find_runs(pool, n, run, first)) < n) {
        int more = (n - found) * run;

        if (!make_free(pool, pool->n_free + (more > step ? more : step)))
            return false;
    }
    for (int i = 0; i < n; i++)
        for (int32_t page = first[i]; page < first[i] + run; page++) {
            leave_free(pool, page);
            pool->lent[page] = true;
        }
    pool->n_lent += (int)need;
    return true;
}

void ol_kvpages_return(ol_kvpages *pool, int n, int run, const int32_t *first)
{
    for (int i = 0; i < n; i++)
        for (int32_t page = first[i]; page < first[i] + run; page++) {
            assert(page >= 0 && page < pool->n_pages && pool->lent[page]);
            pool->lent[page] = false;
            pool->n_lent--;
            become_free(pool, page);
        }
}

void ol_kvpages_limit(ol_kvpages *pool, int most)
{
    assert(most > 0 && pool->n_used + pool->n_idle <= most);
    pool->most = most < pool->n_pages ? most : pool->n_pages;
}

/* -- facts ---------------------------------------------------------------------------- */

int ol_kvpages_total(const ol_kvpages *pool)
{
    return pool->n_pages;
}

int ol_kvpages_most(const ol_kvpages *pool)
{
    return pool->most;
}

int ol_kvpages_room(const ol_kvpages *pool)
{
    return pool->n_free + pool->n_idle + guest_idle(pool);
}

int ol_kvpages_available(const ol_kvpages *pool)
{
    int room = ol_kvpages_room(pool), under = pool->most - pool->n_used;

    return room < under ? room : under;
}

int ol_kvpages_used(const ol_kvpages *pool)
{
    return pool->n_used;
}

int ol_kvpages_lent(const ol_kvpages *pool)
{
    return pool->n_lent;
}

bool ol_kvpages_is_lent(const ol_kvpages *pool, int32_t page)
{
    assert(page >= 0 && page < pool->n_pages);
    return pool->lent[page];
}

uint64_t ol_kvpages_releases(const ol_kvpages *pool)
{
    return pool->releases;
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
