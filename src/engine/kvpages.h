/*
 * kvpages.h: who owns which page of the KV cache. Numbers only: the pages themselves
 * lie on the device.
 *
 * A page that nobody holds any more is free, unless it is kept: then its content is worth
 * something (a prefix of somebody's tokens, see prefix.h), and it lies idle until somebody
 * shares it again or its room is needed. Idle pages go in the order in which they became
 * idle.
 *
 * Pages can be lent to a guest (the adapter store), in runs of neighbours, for what is no keys
 * and values. It, too, has things that lie idle. Whoever needs room gets what became idle
 * first, whosever it was: one order for both. Pages with references, and what the guest
 * needs, stay where they are. Pages are taken from the first on and runs from the last, so
 * that runs find neighbours.
 *
 * Invariants (asserted)
 *  1. A page is free, idle, lent, or has as many references as page tables hold it.
 *  2. Free, idle and lent pages and pages with references are the pool.
 *  3. A page that is written to has one reference and is not kept; others are read only.
 */
#ifndef OL_ENGINE_KVPAGES_H
#define OL_ENGINE_KVPAGES_H

#include "base/status.h"

typedef struct ol_kvpages ol_kvpages;

#define OL_NO_PAGE (-1)

ol_code ol_kvpages_create(int n_pages, int page_tokens, ol_kvpages **pool, ol_error *err);
void ol_kvpages_free(ol_kvpages *pool); /* NULL is fine */

/* A page with one reference, or OL_NO_PAGE. */
int32_t ol_kvpages_alloc(ol_kvpages *pool);
void ol_kvpages_share(ol_kvpages *pool, int32_t page);   /* one reference more */
void ol_kvpages_release(ol_kvpages *pool, int32_t page); /* one less; free or idle at none */

/* The page, which has references, is kept from now on. */
void ol_kvpages_keep(ol_kvpages *pool, int32_t page);
/* Called with a kept page whose room is needed: it is kept no longer. */
typedef void (*ol_kvpages_forget)(void *context, int32_t page);
void ol_kvpages_on_forget(ol_kvpages *pool, ol_kvpages_forget forget, void *context);

/* What the guest has lying idle. Each may be called whenever pages are taken. */
typedef struct ol_kvpages_guest {
    int (*idle)(void *context);        /* pages of all that */
    uint64_t (*oldest)(void *context); /* since when (ol_kvpages_now) the first to go has been;
                                        * UINT64_MAX: there is none */
    void (*drop)(void *context);       /* that one goes: its pages are returned */
    void *context;
} ol_kvpages_guest;

void ol_kvpages_invite(ol_kvpages *pool, const ol_kvpages_guest *guest);
/* Counts what becomes idle. */
uint64_t ol_kvpages_now(ol_kvpages *pool);
/* n runs of `run` neighbours each, into first[n]: all of them, or none and false. What lies idle
 * goes for it. */
bool ol_kvpages_lend(ol_kvpages *pool, int n, int run, int32_t *first);
void ol_kvpages_return(ol_kvpages *pool, int n, int run, const int32_t *first);
/* At most so many pages hold keys and values (those with references and the idle ones). */
void ol_kvpages_limit(ol_kvpages *pool, int most);

int ol_kvpages_total(const ol_kvpages *pool);
int ol_kvpages_most(const ol_kvpages *pool); /* see ol_kvpages_limit */
/* What ol_kvpages_alloc can give: free and idle, and what the guest has lying idle. */
int ol_kvpages_available(const ol_kvpages *pool);
/* The same, without what keys and values may have at most: what a guest can be lent. */
int ol_kvpages_room(const ol_kvpages *pool);
int ol_kvpages_used(const ol_kvpages *pool); /* with references */
int ol_kvpages_lent(const ol_kvpages *pool);
bool ol_kvpages_is_lent(const ol_kvpages *pool, int32_t page);
/* How often a page became free or idle. */
uint64_t ol_kvpages_releases(const ol_kvpages *pool);
int ol_kvpages_idle(const ol_kvpages *pool);
int ol_kvpages_refs(const ol_kvpages *pool, int32_t page);
/* Pages that n_tokens tokens take. */
int ol_kvpages_for(const ol_kvpages *pool, int n_tokens);
int ol_kvpages_tokens(const ol_kvpages *pool); /* of one page */

/* The pages of one sequence, in order of position. The array is the owner's. */
typedef struct ol_pagetable {
    int32_t *pages;
    int n, max;
} ol_pagetable;

/* Grows the table until it holds n_tokens tokens: all the pages, or none and false. */
bool ol_pagetable_grow(ol_pagetable *table, ol_kvpages *pool, int n_tokens);
/* Gives all pages back, the last first. */
void ol_pagetable_clear(ol_pagetable *table, ol_kvpages *pool);

#endif
