/*
 * kvpages.h: who owns which page of the KV cache. Numbers only: the pages themselves
 * lie on the device.
 *
 * A page that nobody holds any more is free, unless it is kept: then its content is worth
 * something (a prefix of somebody's tokens, see prefix.h), and it lies idle until somebody
 * shares it again or its room is needed. Idle pages go in the order in which they became
 * idle.
 *
 * Invariants (asserted)
 *  1. A page is free, idle, or has as many references as page tables hold it.
 *  2. Free pages, idle pages and pages with references are the pool.
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

int ol_kvpages_total(const ol_kvpages *pool);
/* Free and idle: what ol_kvpages_alloc can give. */
int ol_kvpages_available(const ol_kvpages *pool);
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
