/* adapters.c: see adapters.h. */
#include "engine/adapters.h"

#include "engine/clock.h"
#include "engine/idle.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 4096            /* a power of two */
#define NAMED_BEFORE_HALVING 16 /* for each that is resident */

struct ol_adapters {
    ol_adapters_options how;
    ol_adapters_counts counts;
    ol_adapter *buckets[BUCKETS];
    ol_idle idle;               /* resident and not pinned */
    ol_adapter_list remembered; /* neither resident nor referenced */
    int named;                  /* how often one was, since uses were halved */
};

/* -- life -------------------------------------------------------------------------- */

static int idle_pages(void *context);
static uint64_t oldest_idle(void *context);
static void drop_oldest(void *context);

ol_code ol_adapters_create(const ol_adapters_options *options, ol_adapters **out, ol_error *err)
{
    ol_adapters *store = calloc(1, sizeof(*store));

    if (!store)
        return ol_fail_nomem(err, sizeof(*store), "the adapter store");
    store->how = *options;
    store->counts.budget = options->budget;
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

    return (ol_adapter **)&store->buckets[at & (BUCKETS - 1)];
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

static void become_idle(ol_adapters *store, ol_adapter *a, bool fresh)
{
    a->idle_since = store->how.pool ? ol_kvpages_now(store->how.pool) : 0;
    ol_idle_add(&store->idle, a, fresh);
}

static void forget(ol_adapters *store, ol_adapter *a)
{
    ol_adapter **at = bucket_of(store, &a->digest);

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

static void evict(ol_adapters *store, ol_adapter *a)
{
    assert(a->pins == 0 && a->lora);
    ol_idle_remove(&store->idle, a);
    store->how.table->lora_free(store->how.device, a->lora);
    a->lora = NULL;
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
        evict(store, first);
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
    for (int i = 0; i < BUCKETS; i++)
        assert(!store->buckets[i]);
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
        become_idle(store, a, false);
        store->counts.pinned_bytes -= a->bytes;
        store->counts.releases++;
    }
}

static void halve_uses(ol_adapters *store)
{
    store->named = 0;
    ol_idle_halve(&store->idle);
    for (int i = 0; i < BUCKETS; i++)
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
    for (int i = 0; i < BUCKETS; i++)
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
    while (store->remembered.n)
        forget(store, store->remembered.oldest);
    for (int i = 0; i < BUCKETS; i++)
        for (ol_adapter *a = store->buckets[i]; a; a = a->chain)
            a->hits = a->misses = a->loads = a->load_us = 0;
}

int ol_adapters_records(const ol_adapters *store)
{
    int n = 0;

    ol_adapters_each(store, count_one, &n);
    return n;
}

/* -- a pool's pages -----------------------------------------------------------------------------
 */

size_t ol_adapters_place_bytes(const ol_adapters *store, const ol_lora_need *need)
{
    return (size_t)need->n_runs * (size_t)need->run * store->how.page_bytes;
}

/* Drops idle adapters until `bytes` more fit; false when they cannot. */
static bool make_room(ol_adapters *store, size_t bytes)
{
    const ol_adapters_counts *c = &store->counts;

    if (c->pinned_bytes + c->reserved > c->budget ||
        bytes > c->budget - c->pinned_bytes - c->reserved)
        return false;
    while (bytes > c->budget - c->bytes - c->reserved)
        evict(store, ol_idle_first(&store->idle));
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

    evict(store, ol_idle_first(&store->idle));
}

bool ol_adapters_take_place(ol_adapters *store, const ol_lora_need *need, ol_adapter_place *place)
{
    const ol_adapters_counts *c = &store->counts;
    size_t bytes = ol_adapters_place_bytes(store, need);

    if (!make_room(store, bytes))
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

/* -- arrival -------------------------------------------------------------------------------- */

bool ol_adapters_reserve(ol_adapters *store, size_t bytes)
{
    if (!make_room(store, bytes))
        return false;
    store->counts.reserved += bytes;
    return true;
}

void ol_adapters_unreserve(ol_adapters *store, size_t bytes)
{
    assert(store->counts.reserved >= bytes);
    store->counts.reserved -= bytes;
}

ol_code ol_adapters_over_budget(const ol_adapters *store, size_t bytes, int n, ol_error *err)
{
    if (n == 1)
        ol_fail(err, OL_LIMIT, "the adapter does not fit the adapter cache");
    else
        ol_fail(err, OL_LIMIT, "the %d adapters of the request do not fit the adapter cache", n);
    ol_detail(err, "%zu bytes are needed; the cache's budget is %zu bytes.", bytes,
              store->counts.budget);
    return ol_hint(err, "Give the adapter cache more memory, or use fewer or smaller adapters.");
}

/* The device's own memory may end before the budget does: then idle adapters go one by
 * one. *lora stays NULL when pinned ones are in the way. */
static ol_code place(ol_adapters *store, const ol_adapter_file *file, ol_lora **lora, ol_error *err)
{
    ol_adapter *first;

    *lora = NULL;
    for (;;) {
        ol_code code = store->how.table->lora_create(store->how.device, file->modules,
                                                     file->n_modules, lora, err);

        if (code == OL_OK)
            return OL_OK;
        *lora = NULL;
        first = ol_idle_first(&store->idle);
        if (code != OL_NOMEM || (!first && store->counts.resident == 0))
            return code;
        if (!first)
            return OL_OK;
        evict(store, first);
    }
}

static void facts_of(const ol_adapter_made *made, ol_adapter_facts *facts)
{
    const ol_adapter_file *file = &made->file;

    *facts = (ol_adapter_facts){.digest = file->digest,
                                .max_rank = file->max_rank,
                                .n_modules = file->n_modules,
                                .parameters = file->parameters,
                                .device_bytes = made->takes,
                                .module_mask = file->module_mask};
}

static void make_resident(ol_adapters *store, ol_adapter *a, ol_lora *lora, size_t bytes)
{
    a->lora = lora;
    a->bytes = bytes;
    become_idle(store, a, a->uses > 0);
    store->counts.bytes += bytes;
    store->counts.resident++;
    store->counts.loads++;
}

/* Takes made->lora over. */
static ol_code keep(ol_adapters *store, ol_adapter_made *made, ol_adapter *a,
                    ol_adapter_verdict *verdict, ol_error *err)
{
    const ol_adapter_file *file = &made->file;
    ol_lora *lora = made->lora;

    a->bytes = file->tensor_bytes;
    if (file->tensor_bytes > store->counts.budget)
        return ol_adapters_over_budget(store, file->tensor_bytes, 1, err);
    if (!lora) {
        if (!make_room(store, file->tensor_bytes))
            return OL_OK;
        OL_TRY(place(store, file, &lora, err));
        if (!lora)
            return OL_OK;
    }
    made->lora = NULL;
    /* Only now does the device tell what it really takes. */
    a->bytes = verdict->facts.device_bytes = store->how.table->lora_bytes(store->how.device, lora);
    if (make_room(store, a->bytes)) {
        make_resident(store, a, lora, a->bytes);
        verdict->kept = true;
        return OL_OK;
    }
    store->how.table->lora_free(store->how.device, lora);
    return a->bytes > store->counts.budget ? ol_adapters_over_budget(store, a->bytes, 1, err)
                                           : OL_OK;
}

/* The same in a pool: the loader has filled its place, or it is filled here and now. */
static ol_code keep_in_pool(ol_adapters *store, ol_adapter_made *made, ol_adapter *a,
                            ol_adapter_verdict *verdict, ol_error *err)
{
    ol_adapter_place place = {0};

    a->bytes = made->takes;
    a->pages.need = made->place.need;
    if (made->takes > store->counts.budget)
        return ol_adapters_over_budget(store, made->takes, 1, err);
    if (!made->lora && made->here && ol_adapters_take_place(store, &made->place.need, &place)) {
        ol_adapters_unreserve(store, made->takes);
        ol_adapters_fill_place(store, &place, made);
        if (made->code != OL_OK) {
            *err = made->error;
            return made->code;
        }
    }
    if (!made->lora)
        return OL_OK;
    a->pages = made->place;
    make_resident(store, a, made->lora, made->takes);
    made->lora = NULL;
    made->place.runs = NULL;
    verdict->kept = true;
    return OL_OK;
}

static ol_code wrong_digest(const ol_digest *expected, const ol_digest *found, ol_error *err)
{
    char want[OL_DIGEST_HEX], have[OL_DIGEST_HEX];

    ol_digest_hex(expected, want);
    ol_digest_hex(found, have);
    ol_fail(err, OL_INVALID, "the adapter's bytes are not those that the request names");
    return ol_detail(err, "Their digest is %s, not %s.", have, want);
}

static ol_code parse(const ol_adapters *store, ol_adapter_made *made)
{
    const ol_adapter_bytes *b = &made->bytes;

    made->arena = ol_arena_create();
    if (!made->arena)
        return ol_fail_nomem(&made->error, b->weights_len, "an adapter");
    return ol_adapter_file_parse(b->weights, b->weights_len, b->config, b->config_len,
                                 store->how.base, made->arena, &made->file, &made->error);
}

/* What it takes of the pool. */
static void find_need(const ol_adapters *store, ol_adapter_made *made)
{
    made->code = store->how.table->lora_need(store->how.device, store->how.kv, made->file.modules,
                                             made->file.n_modules, &made->place.need, &made->error);
    made->takes = ol_adapters_place_bytes(store, &made->place.need);
}

void ol_adapters_fill_place(const ol_adapters *store, ol_adapter_place *place,
                            ol_adapter_made *made)
{
    if (made->code != OL_OK || place->need.n_runs != made->place.need.n_runs ||
        place->need.run != made->place.need.run)
        return;
    made->code = store->how.table->lora_create_in(store->how.device, store->how.kv, place->runs,
                                                  made->file.modules, made->file.n_modules,
                                                  &made->lora, &made->error);
    made->place = *place;
    place->runs = NULL;
}

void ol_adapters_make(const ol_adapters *store, const ol_adapter_bytes *bytes, bool want_lora,
                      ol_adapter_made *made)
{
    const ol_device_table *table = store->how.table;
    ol_error ignored; /* placing is tried again where room can be made */

    memset(made, 0, sizeof(*made));
    made->bytes = *bytes;
    made->code = parse(store, made);
    if (made->code != OL_OK) { /* of bytes that parse, the parser has made it on its way */
        ol_adapter_digest(bytes->weights, bytes->weights_len, bytes->config, bytes->config_len,
                          &made->digest);
        return;
    }
    made->digest = made->file.digest;
    made->takes = made->file.tensor_bytes;
    if (store->how.pool)
        find_need(store, made);
    else if (want_lora && made->file.tensor_bytes <= store->how.budget &&
             table->lora_create(store->how.device, made->file.modules, made->file.n_modules,
                                &made->lora, &ignored) != OL_OK)
        made->lora = NULL;
}

void ol_adapters_drop(const ol_adapters *store, ol_adapter_made *made)
{
    if (made->lora)
        store->how.table->lora_free(store->how.device, made->lora);
    ol_arena_destroy(made->arena);
    ol_adapters_give_place(store, &made->place);
    made->lora = NULL;
    made->arena = NULL;
}

static ol_code take_parsed(ol_adapters *store, ol_adapter_made *made, ol_adapter_verdict *verdict,
                           ol_error *err)
{
    ol_adapter *a = ol_adapters_ref(store, &made->digest);
    ol_code code;

    if (!a)
        return ol_fail_nomem(err, sizeof(*a), "an adapter");
    facts_of(made, &verdict->facts);
    code = store->how.pool ? keep_in_pool(store, made, a, verdict, err)
                           : keep(store, made, a, verdict, err);
    a->facts = verdict->facts;
    /* What others reserve is theirs for a moment only: that is no denial. */
    a->denied_at =
        verdict->kept || store->counts.reserved > 0 ? 0 : ol_adapters_count(store).releases + 1;
    ol_adapters_unref(store, a);
    return code;
}

ol_code ol_adapters_take(ol_adapters *store, const ol_digest *expected, ol_adapter_made *made,
                         ol_adapter_verdict *verdict, ol_error *err)
{
    const ol_adapter *there = ol_adapters_find(store, expected);
    ol_code code = made->code;

    memset(verdict, 0, sizeof(*verdict));
    verdict->ours = ol_digest_equal(&made->digest, expected);
    if (code != OL_OK)
        *err = made->error;
    if (!verdict->ours) {
        code = wrong_digest(expected, &made->digest, err);
    } else if (there) { /* a second host was as quick */
        *verdict = (ol_adapter_verdict){.kept = true, .ours = true, .facts = there->facts};
        code = OL_OK;
    } else if (code == OL_OK) {
        code = take_parsed(store, made, verdict, err);
    }
    ol_adapters_drop(store, made);
    return code;
}

ol_code ol_adapters_put(ol_adapters *store, const ol_digest *expected,
                        const ol_adapter_bytes *bytes, ol_adapter_verdict *verdict, ol_error *err)
{
    const ol_adapter *there = ol_adapters_find(store, expected);
    ol_adapter_made made;

    if (there) { /* need not be read */
        *verdict = (ol_adapter_verdict){.kept = true, .ours = true, .facts = there->facts};
        return OL_OK;
    }
    ol_adapters_make(store, bytes, false, &made);
    made.here = true;
    return ol_adapters_take(store, expected, &made, verdict, err);
}

ol_code ol_adapters_judge(const ol_adapters *store, const ol_adapter_made *made,
                          ol_adapter_facts *facts, ol_error *err)
{
    if (made->code != OL_OK) {
        *err = made->error;
        return made->code;
    }
    facts_of(made, facts);
    if (made->takes > store->counts.budget)
        return ol_adapters_over_budget(store, made->takes, 1, err);
    return OL_OK;
}

ol_code ol_adapters_check(const ol_adapters *store, const ol_adapter_bytes *bytes,
                          ol_adapter_facts *facts, ol_error *err)
{
    ol_adapter_made made;
    ol_code code;

    ol_adapters_make(store, bytes, false, &made);
    code = ol_adapters_judge(store, &made, facts, err);
    ol_adapters_drop(store, &made);
    return code;
}

ol_adapters_counts ol_adapters_count(const ol_adapters *store)
{
    const ol_kvpages *pool = store->how.pool;
    ol_adapters_counts c = store->counts;

    c.room = c.budget;
    if (pool) {
        int unused = ol_kvpages_total(pool) - ol_kvpages_used(pool);

        c.room = (size_t)unused * store->how.page_bytes;
        c.room = c.room < c.budget ? c.room : c.budget;
        c.releases += ol_kvpages_releases(pool);
    }
    return c;
}
