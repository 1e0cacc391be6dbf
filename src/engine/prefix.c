/* prefix.c: see prefix.h. */
#include "engine/prefix.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define CONTEXT_BUCKETS 4096 /* a power of two */

struct ol_prefix_context {
    int n, refs; /* of requests, and of known first pages */
    uint32_t bucket;
    ol_digest digests[OL_PREFIX_ADAPTERS];
    float weights[OL_PREFIX_ADAPTERS];
    struct ol_prefix_context *next;
};

/* What is known of a page; by its number. */
typedef struct entry {
    ol_prefix_context *context; /* NULL: nothing is known */
    int32_t before;             /* the page before it, or OL_NO_PAGE */
    int32_t chain;              /* next of the same bucket */
    int32_t n_after;            /* known pages that follow it */
    uint32_t bucket;
} entry;

struct ol_prefix_cache {
    ol_kvpages *pool;
    int page_tokens;
    entry *entries;   /* [n_pages] */
    int32_t *tokens;  /* [n_pages][page_tokens] */
    double *energies; /* [n_pages][OL_PREFIX_ADAPTERS] */
    int32_t *buckets; /* [mask + 1] first page, or OL_NO_PAGE */
    uint32_t mask;
    ol_prefix_context *contexts[CONTEXT_BUCKETS];
};

static uint64_t mix(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 29;
}

/* -- contexts: as many as adapters and combinations of them have pages ---------------------- */

/* Digests are uniform: some bytes of them do. */
static uint32_t context_bucket(const ol_digest *digests, const float *weights, int n)
{
    uint64_t hash = (uint64_t)n, some;
    uint32_t bits;

    for (int i = 0; i < n; i++) {
        memcpy(&some, digests[i].bytes, sizeof(some));
        memcpy(&bits, &weights[i], sizeof(bits));
        hash = mix(mix(hash, some), bits);
    }
    return (uint32_t)(hash >> 32) & (CONTEXT_BUCKETS - 1);
}

static bool is_context(const ol_prefix_context *c, const ol_digest *digests, const float *weights,
                       int n)
{
    return c->n == n && memcmp(c->digests, digests, (size_t)n * sizeof(*digests)) == 0 &&
           memcmp(c->weights, weights, (size_t)n * sizeof(*weights)) == 0;
}

ol_prefix_context *ol_prefix_ref(ol_prefix_cache *p, const ol_digest *digests, const float *weights,
                                 int n)
{
    uint32_t bucket = context_bucket(digests, weights, n);
    ol_prefix_context *c = p->contexts[bucket];

    assert(n >= 0 && n <= OL_PREFIX_ADAPTERS);
    while (c && !is_context(c, digests, weights, n))
        c = c->next;
    if (!c) {
        c = calloc(1, sizeof(*c));
        if (!c)
            return NULL;
        c->n = n;
        c->bucket = bucket;
        memcpy(c->digests, digests, (size_t)n * sizeof(*digests));
        memcpy(c->weights, weights, (size_t)n * sizeof(*weights));
        c->next = p->contexts[bucket];
        p->contexts[bucket] = c;
    }
    c->refs++;
    return c;
}

void ol_prefix_unref(ol_prefix_cache *p, ol_prefix_context *c)
{
    ol_prefix_context **at;

    if (!c || --c->refs > 0)
        return;
    at = &p->contexts[c->bucket];
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    free(c);
}

/* -- entries ----------------------------------------------------------------------------- */

static uint32_t bucket_of(const ol_prefix_cache *p, const ol_prefix_context *context,
                          int32_t before, const int32_t *tokens)
{
    uint64_t hash = mix((uint64_t)(uintptr_t)context, (uint32_t)before);

    for (int i = 0; i < p->page_tokens; i++)
        hash = mix(hash, (uint32_t)tokens[i]);
    return (uint32_t)(hash >> 32) & p->mask;
}

static int32_t *tokens_of(const ol_prefix_cache *p, int32_t page)
{
    return p->tokens + (size_t)page * (size_t)p->page_tokens;
}

static double *energy_of(const ol_prefix_cache *p, int32_t page)
{
    return p->energies + (size_t)page * OL_PREFIX_ADAPTERS;
}

static int32_t find(const ol_prefix_cache *p, uint32_t bucket, const ol_prefix_context *context,
                    int32_t before, const int32_t *tokens)
{
    int32_t page = p->buckets[bucket];

    while (page != OL_NO_PAGE) {
        const entry *e = &p->entries[page];

        if (e->context == context && e->before == before &&
            memcmp(tokens_of(p, page), tokens, (size_t)p->page_tokens * sizeof(*tokens)) == 0)
            return page;
        page = e->chain;
    }
    return OL_NO_PAGE;
}

static void forget_page(void *context, int32_t page)
{
    ol_prefix_cache *p = context;
    entry *e = &p->entries[page];
    int32_t *at = &p->buckets[e->bucket];

    assert(e->context && e->n_after == 0); /* invariant 2 */
    while (*at != page)
        at = &p->entries[*at].chain;
    *at = e->chain;
    if (e->before != OL_NO_PAGE)
        p->entries[e->before].n_after--;
    ol_prefix_unref(p, e->context);
    e->context = NULL;
}

static void learn_page(ol_prefix_cache *p, int32_t page, const entry *what, const int32_t *tokens,
                       const double *energy)
{
    entry *e = &p->entries[page];

    *e = *what;
    e->context->refs++;
    e->chain = p->buckets[e->bucket];
    p->buckets[e->bucket] = page;
    if (e->before != OL_NO_PAGE)
        p->entries[e->before].n_after++;
    memcpy(tokens_of(p, page), tokens, (size_t)p->page_tokens * sizeof(*tokens));
    memcpy(energy_of(p, page), energy, (size_t)e->context->n * sizeof(*energy));
    ol_kvpages_keep(p->pool, page);
}

/* -- life --------------------------------------------------------------------------------- */

ol_code ol_prefix_create(ol_kvpages *pool, ol_prefix_cache **out, ol_error *err)
{
    ol_prefix_cache *p = calloc(1, sizeof(*p));
    size_t n = (size_t)ol_kvpages_total(pool), buckets = 64;
    size_t tokens = (size_t)ol_kvpages_tokens(pool);

    while (buckets < n)
        buckets *= 2;
    if (p) {
        p->entries = calloc(n, sizeof(entry));
        p->tokens = calloc(n * tokens, sizeof(int32_t));
        p->energies = calloc(n * OL_PREFIX_ADAPTERS, sizeof(double));
        p->buckets = malloc(buckets * sizeof(int32_t));
    }
    if (!p || !p->entries || !p->tokens || !p->energies || !p->buckets) {
        ol_prefix_free(p);
        return ol_fail_nomem(err, n * tokens * sizeof(int32_t), "the prefix cache");
    }
    p->pool = pool;
    p->page_tokens = (int)tokens;
    p->mask = (uint32_t)buckets - 1;
    for (size_t i = 0; i < buckets; i++)
        p->buckets[i] = OL_NO_PAGE;
    ol_kvpages_on_forget(pool, forget_page, p);
    *out = p;
    return OL_OK;
}

void ol_prefix_free(ol_prefix_cache *p)
{
    ol_prefix_context *next;

    if (!p)
        return;
    for (int i = 0; i < CONTEXT_BUCKETS; i++)
        for (ol_prefix_context *c = p->contexts[i]; c; c = next) {
            next = c->next;
            free(c);
        }
    free(p->entries);
    free(p->tokens);
    free(p->energies);
    free(p->buckets);
    free(p);
}

/* -- use ------------------------------------------------------------------------------------- */

int ol_prefix_find(ol_prefix_cache *p, ol_prefix_context *context, const int32_t *tokens,
                   int n_tokens, int32_t *pages, double *energy)
{
    int n = 0, most = n_tokens / p->page_tokens;
    int32_t before = OL_NO_PAGE;

    for (; n < most; n++, tokens += p->page_tokens) {
        int32_t page = find(p, bucket_of(p, context, before, tokens), context, before, tokens);

        if (page == OL_NO_PAGE)
            break;
        ol_kvpages_share(p->pool, page);
        pages[n] = before = page;
    }
    for (int k = 0; k < context->n; k++)
        energy[k] = n ? energy_of(p, before)[k] : 0;
    return n;
}

void ol_prefix_add(ol_prefix_cache *p, ol_prefix_context *context, const int32_t *tokens,
                   int32_t *pages, int i, const double *energy)
{
    entry what = {.context = context, .before = i > 0 ? pages[i - 1] : OL_NO_PAGE};
    const int32_t *own = tokens + (size_t)i * (size_t)p->page_tokens;
    int32_t known;

    if (p->entries[pages[i]].context) /* found, not computed */
        return;
    if (i > 0 && !p->entries[pages[i - 1]].context)
        return; /* cannot be: pages fill in order */
    what.bucket = bucket_of(p, context, what.before, own);
    known = find(p, what.bucket, context, what.before, own);
    if (known == OL_NO_PAGE) {
        learn_page(p, pages[i], &what, own, energy);
        return;
    }
    ol_kvpages_share(p->pool, known);
    ol_kvpages_release(p->pool, pages[i]);
    pages[i] = known;
}
