/*
 * prefix.h: which full pages of the KV cache hold which tokens, so that a request finds what
 * an earlier one with the same beginning has computed.
 *
 * Keys and values of a token depend on all tokens before it, on the base model and on the
 * adapters with their weights. So a page is known by its context (the adapters' digests
 * and weights, in order: the sum is computed in that order), the page before it, and its own
 * tokens; all are compared, a hash only finds them. A row that gets new weights has a new
 * digest: it finds nothing of the old. The base is that of the engine.
 *
 * A device's row depends on that row and what is before it alone, bit for bit (device.h):
 * so a found page holds exactly what would be computed (P6).
 *
 * With the tokens a page keeps the energies of the adapters' outputs up to its end, so that
 * measured shares do not depend on what was found.
 *
 * Invariants
 *  1. A known page is kept in the pool (kvpages.h); a page is known under one key, and no two
 *     pages under the same.
 *  2. Who holds a page holds the pages before it; so a page becomes idle before the page it
 *     follows does, and is forgotten before it.
 */
#ifndef OL_ENGINE_PREFIX_H
#define OL_ENGINE_PREFIX_H

#include "base/file.h"
#include "engine/kvpages.h"

#define OL_PREFIX_ADAPTERS 16

typedef struct ol_prefix_cache ol_prefix_cache;
typedef struct ol_prefix_context ol_prefix_context;

ol_code ol_prefix_create(ol_kvpages *pool, ol_prefix_cache **prefix, ol_error *err);
void ol_prefix_free(ol_prefix_cache *prefix); /* NULL is fine */

/* The context of requests with these adapters, with one reference more; NULL when out of
 * memory. */
ol_prefix_context *ol_prefix_ref(ol_prefix_cache *prefix, const ol_digest *digests,
                                 const float *weights, int n);
void ol_prefix_unref(ol_prefix_cache *prefix, ol_prefix_context *context);

/* Shares the pages of the longest known beginning of `tokens` that has at most n_tokens,
 * into pages[0 ..]; returns their number. energy [n adapters]: up to there. */
int ol_prefix_find(ol_prefix_cache *prefix, ol_prefix_context *context, const int32_t *tokens,
                   int n_tokens, int32_t *pages, double *energy);

/* Page number i of a sequence is full: pages[0 .. i] hold tokens[0 .. (i + 1) * page_tokens).
 * It is known from now on; if these tokens are known in another page already, that one takes
 * its place in the table, and the sequence's own is released. */
void ol_prefix_add(ol_prefix_cache *prefix, ol_prefix_context *context, const int32_t *tokens,
                   int32_t *pages, int i, const double *energy);

#endif
