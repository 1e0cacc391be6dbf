/* adapters.c: see adapters.h. */
#include "engine/adapters_internal.h"
#include "engine/clock.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define NAMED_BEFORE_HALVING 16 /* for each that is resident */

/* -- life -------------------------------------------------------------------------- */

static int idle_pages(void *context);
static uint64_t oldest_idle(void *context);
static void drop_oldest(void *context);

ol_code ol_adapters_create(const ol_adapters_options *options, ol_adapters **out, ol_error *err)
{
    ol_adapters *store = calloc(1, sizeof(*store));

    if (!store)
        return ol_fail_nomem(err, sizeof(*store), "the adapter store");
    if (ol_sealer_create(&store->sealer, err) != OL_OK) {
        free(store);
        return err->code;
    }
    store->how = *options;
    store->copies = (ol_copies){
        .budget = options->copy_budget, .table = options->table, .device = options->device};
    if (options->pool)
        ol_kvpages_invite(options->pool,
                          &(ol_kvpages_guest){idle_pages, oldest_idle, drop_oldest, store});
    *out = store;
    return OL_OK;
}

/* Digests are uniform: any bytes of them are a hash. */
static ol_adapter **bucket_of(const ol_adapters *store, const ol_digest *digest)
{
    size_t at = digest->bytes[0] | (size_t)digest->bytes[1] << 8;

    return (ol_adapter **)&store->buckets[at & (ADAPTERS_BUCKETS - 1)];
}

static ol_adapter *find(const ol_adapters *store, const ol_digest *digest)
{
    ol_adapter *a = *bucket_of(store, digest);

    while (a && !ol_digest_equal(&a->digest, digest))
        a = a->chain;
    return a;
}

static ol_adapter *find_or_make(ol_adapters *store, const ol_digest *digest)
{
    ol_adapter **bucket = bucket_of(store, digest);
    ol_adapter *a = find(store, digest);

    if (a)
        return a;
    a = calloc(1, sizeof(*a));
    if (!a)
        return NULL;
    a->digest = *digest;
    a->chain = *bucket;
    *bucket = a;
    return a;
}

/* -- coming and going ------------------------------------------------------------------ */

void adapters_become_idle(ol_adapters *store, ol_adapter *a, bool fresh)
{
    a->idle_since = store->how.pool ? ol_kvpages_now(store->how.pool) : 0;
    ol_idle_add(&store->idle, a, fresh);
}

static void forget(ol_adapters *store, ol_adapter *a)
{
    ol_adapter **at = bucket_of(store, &a->digest);

    ol_copies_drop(&store->copies, a->copy);
    ol_adapter_list_remove(&store->remembered, a);
    while (*at != a)
        at = &(*at)->chain;
    *at = a->chain;
    free(a);
}

/* Nothing holds it any more: but who looks may want to know how it was used. */
static void remember_unless_held(ol_adapters *store, ol_adapter *a)
{
    if (a->refs > 0 || a->lora)
        return;
    a->asked = false;
    a->denied_at = 0;
    a->remembered = true;
    ol_adapter_list_append(&store->remembered, a);
    if (store->remembered.n > OL_ADAPTERS_REMEMBERED)
        forget(store, store->remembered.oldest);
}

void adapters_evict(ol_adapters *store, ol_adapter *a)
{
    assert(a->pins == 0 && a->lora);
    ol_idle_remove(&store->idle, a);
    store->how.table->lora_free(store->how.device, a->lora);
    a->lora = NULL;
    ol_copies_touch(&store->copies, a->copy); /* it is the only one now */
    ol_adapters_give_place(store, &a->pages);
    store->counts.bytes -= a->bytes;
    store->counts.resident--;
    store->counts.evictions++;
    remember_unless_held(store, a);
}

bool ol_adapters_drop_idle(ol_adapters *store)
{
    ol_adapter *first = ol_idle_first(&store->idle);
    bool any = first != NULL;

    for (; first; first = ol_idle_first(&store->idle))
        adapters_evict(store, first);
    return any;
}

void ol_adapters_free(ol_adapters *store)
{
    if (!store)
        return;
    (void)ol_adapters_drop_idle(store);
    while (store->remembered.n)
        forget(store, store->remembered.oldest);
    assert(store->counts.resident == 0 && store->counts.bytes == 0);
    for (int i = 0; i < ADAPTERS_BUCKETS; i++)
        assert(!store->buckets[i]);
    ol_copies_end(&store->copies);
    ol_sealer_free(store->sealer);
    free(store);
}

/* -- references and pins ----------------------------------------------------------------- */

ol_adapter *ol_adapters_ref(ol_adapters *store, const ol_digest *digest)
{
    ol_adapter *a = find_or_make(store, digest);

    if (!a)
        return NULL;
    if (a->remembered)
        ol_adapter_list_remove(&store->remembered, a);
    a->remembered = false;
    a->refs++;
    return a;
}

void ol_adapters_unref(ol_adapters *store, ol_adapter *a)
{
    assert(a->refs > 0);
    a->refs--;
    remember_unless_held(store, a);
}

const ol_adapter *ol_adapters_find(const ol_adapters *store, const ol_digest *digest)
{
    const ol_adapter *a = find(store, digest);

    return a && a->lora ? a : NULL;
}

void ol_adapters_pin(ol_adapters *store, ol_adapter *a)
{
    assert(a->lora);
    if (a->pins++ == 0) {
        ol_idle_remove(&store->idle, a);
        store->counts.pinned_bytes += a->bytes;
    }
}

void ol_adapters_unpin(ol_adapters *store, ol_adapter *a)
{
    assert(a->pins > 0);
    if (--a->pins == 0) {
        adapters_become_idle(store, a, false);
        store->counts.pinned_bytes -= a->bytes;
        store->counts.releases++;
    }
}

static void halve_uses(ol_adapters *store)
{
    store->named = 0;
    ol_idle_halve(&store->idle);
    for (int i = 0; i < ADAPTERS_BUCKETS; i++)
        for (ol_adapter *a = store->buckets[i]; a; a = a->chain) {
            a->uses /= 2;
            a->place /= 2;
        }
}

static void count_use(ol_adapters *store, ol_adapter *a)
{
    a->uses += a->uses < OL_USES;
    if (a->lora && a->pins == 0 && a->place < a->uses) {
        ol_idle_remove(&store->idle, a);
        ol_idle_add(&store->idle, a, false);
    }
    if (++store->named >= NAMED_BEFORE_HALVING * (store->counts.resident + 1))
        halve_uses(store);
}

void ol_adapters_named(ol_adapters *store, ol_adapter *a)
{
    a->used_us = ol_now_us();
    count_use(store, a);
    if (a->lora) {
        a->hits++;
        store->counts.hits++;
    } else {
        a->misses++;
    }
}

void ol_adapters_each(const ol_adapters *store, void (*each)(const ol_adapter *, void *),
                      void *context)
{
    for (int i = 0; i < ADAPTERS_BUCKETS; i++)
        for (const ol_adapter *a = store->buckets[i]; a; a = a->chain)
            each(a, context);
}

static void count_one(const ol_adapter *a, void *context)
{
    (void)a;
    ++*(int *)context;
}

void ol_adapters_reset(ol_adapters *store)
{
    for (ol_adapter *a = store->remembered.oldest, *next; a; a = next) {
        next = a->lru_next;
        if (!a->copy)
            forget(store, a);
    }
    for (int i = 0; i < ADAPTERS_BUCKETS; i++)
        for (ol_adapter *a = store->buckets[i]; a; a = a->chain)
            a->hits = a->misses = a->loads = a->load_us = 0;
}

int ol_adapters_records(const ol_adapters *store)
{
    int n = 0;

    ol_adapters_each(store, count_one, &n);
    return n;
}

/* -- a pool's pages --------------------------------------------------------------------- */

size_t ol_adapters_place_bytes(const ol_adapters *store, const ol_lora_need *need)
{
    return (size_t)need->n_runs * (size_t)need->run * store->how.page_bytes;
}

bool adapters_make_room(ol_adapters *store, size_t bytes)
{
    const ol_adapters_counts *c = &store->counts;
    size_t budget = store->how.budget;

    if (c->pinned_bytes + c->reserved > budget || bytes > budget - c->pinned_bytes - c->reserved)
        return false;
    while (bytes > budget - c->bytes - c->reserved)
        adapters_evict(store, ol_idle_first(&store->idle));
    return true;
}

/* As the pool's guest. */
static int idle_pages(void *context)
{
    const ol_adapters *store = context;

    return (int)((store->counts.bytes - store->counts.pinned_bytes) / store->how.page_bytes);
}

static uint64_t oldest_idle(void *context)
{
    const ol_adapters *store = context;

    const ol_adapter *first = ol_idle_first(&store->idle);

    return first ? first->idle_since : UINT64_MAX;
}

static void drop_oldest(void *context)
{
    ol_adapters *store = context;

    adapters_evict(store, ol_idle_first(&store->idle));
}

bool ol_adapters_take_place(ol_adapters *store, const ol_lora_need *need, ol_adapter_place *place)
{
    const ol_adapters_counts *c = &store->counts;
    size_t bytes = ol_adapters_place_bytes(store, need);

    if (!adapters_make_room(store, bytes))
        return false;
    *place =
        (ol_adapter_place){.need = *need, .runs = malloc((size_t)need->n_runs * sizeof(int32_t))};
    if (place->runs && ol_kvpages_lend(store->how.pool, need->n_runs, need->run, place->runs)) {
        store->counts.reserved += bytes;
        assert(c->bytes + c->reserved ==
               (size_t)ol_kvpages_lent(store->how.pool) * store->how.page_bytes);
        return true;
    }
    free(place->runs);
    place->runs = NULL;
    return false;
}

void ol_adapters_give_place(const ol_adapters *store, ol_adapter_place *place)
{
    if (!place->runs)
        return;
    ol_kvpages_return(store->how.pool, place->need.n_runs, place->need.run, place->runs);
    free(place->runs);
    place->runs = NULL;
}

bool ol_adapters_reserve(ol_adapters *store, size_t bytes)
{
    if (!adapters_make_room(store, bytes))
        return false;
    store->counts.reserved += bytes;
    return true;
}

void ol_adapters_unreserve(ol_adapters *store, size_t bytes)
{
    assert(store->counts.reserved >= bytes);
    store->counts.reserved -= bytes;
}

ol_adapters_counts ol_adapters_count(const ol_adapters *store)
{
    const ol_kvpages *pool = store->how.pool;
    ol_adapters_counts c = store->counts;

    c.budget = c.room = store->how.budget;
    c.copies = store->copies.n;
    c.copy_bytes = store->copies.bytes;
    if (pool) {
        int unused = ol_kvpages_total(pool) - ol_kvpages_used(pool);

        c.room = (size_t)unused * store->how.page_bytes;
        c.room = c.room < c.budget ? c.room : c.budget;
        c.releases += ol_kvpages_releases(pool);
    }
    return c;
}
