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

ol_code ol_adapters_create(const ol_adapters_options *options, ol_adapters **out, ol_error *err)
{
    ol_adapters *store = calloc(1, sizeof(*store));

    if (!store)
        return ol_fail_nomem(err, sizeof(*store), "the adapter store");
    store->how = *options;
    store->counts.budget = options->budget;
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
        ol_idle_add(&store->idle, a, false);
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

/* -- arrival -------------------------------------------------------------------------------- */

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

static void facts_of(const ol_adapter_file *file, ol_adapter_facts *facts)
{
    *facts = (ol_adapter_facts){.digest = file->digest,
                                .max_rank = file->max_rank,
                                .n_modules = file->n_modules,
                                .parameters = file->parameters,
                                .device_bytes = file->tensor_bytes,
                                .module_mask = file->module_mask};
}

static void make_resident(ol_adapters *store, ol_adapter *a, ol_lora *lora, size_t bytes)
{
    a->lora = lora;
    a->bytes = bytes;
    ol_idle_add(&store->idle, a, a->uses > 0);
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
    if (want_lora && made->file.tensor_bytes <= store->how.budget &&
        table->lora_create(store->how.device, made->file.modules, made->file.n_modules, &made->lora,
                           &ignored) != OL_OK)
        made->lora = NULL;
}

void ol_adapters_drop(const ol_adapters *store, ol_adapter_made *made)
{
    if (made->lora)
        store->how.table->lora_free(store->how.device, made->lora);
    ol_arena_destroy(made->arena);
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
    facts_of(&made->file, &verdict->facts);
    code = keep(store, made, a, verdict, err);
    a->facts = verdict->facts;
    /* What others reserve is theirs for a moment only: that is no denial. */
    a->denied_at = verdict->kept || store->counts.reserved > 0 ? 0 : store->counts.releases + 1;
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
    return ol_adapters_take(store, expected, &made, verdict, err);
}

ol_code ol_adapters_judge(const ol_adapters *store, const ol_adapter_made *made,
                          ol_adapter_facts *facts, ol_error *err)
{
    if (made->code != OL_OK) {
        *err = made->error;
        return made->code;
    }
    facts_of(&made->file, facts);
    if (made->file.tensor_bytes > store->counts.budget)
        return ol_adapters_over_budget(store, made->file.tensor_bytes, 1, err);
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
    return store->counts;
}
