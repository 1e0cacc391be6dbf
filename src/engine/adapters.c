/* adapters.c: see adapters.h. */
#include "engine/adapters.h"

#include "engine/formats/adapter_file.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 4096 /* a power of two */

struct ol_adapters {
    ol_adapters_options how;
    ol_adapters_counts counts;
    ol_adapter *buckets[BUCKETS];
    ol_adapter *oldest, *newest; /* resident and not pinned */
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

/* Frees a record that nothing holds any more. */
static void forget_unless_held(ol_adapters *store, ol_adapter *a)
{
    ol_adapter **at = bucket_of(store, &a->digest);

    if (a->refs > 0 || a->lora)
        return;
    while (*at != a)
        at = &(*at)->chain;
    *at = a->chain;
    free(a);
}

/* -- the list of those that may go ---------------------------------------------------- */

static void lru_remove(ol_adapters *store, ol_adapter *a)
{
    if (a->lru_prev)
        a->lru_prev->lru_next = a->lru_next;
    else
        store->oldest = a->lru_next;
    if (a->lru_next)
        a->lru_next->lru_prev = a->lru_prev;
    else
        store->newest = a->lru_prev;
    a->lru_prev = a->lru_next = NULL;
}

static void lru_append(ol_adapters *store, ol_adapter *a)
{
    a->lru_prev = store->newest;
    a->lru_next = NULL;
    if (store->newest)
        store->newest->lru_next = a;
    else
        store->oldest = a;
    store->newest = a;
}

static void evict(ol_adapters *store, ol_adapter *a)
{
    assert(a->pins == 0 && a->lora);
    lru_remove(store, a);
    store->how.table->lora_free(store->how.device, a->lora);
    a->lora = NULL;
    store->counts.bytes -= a->bytes;
    store->counts.resident--;
    store->counts.evictions++;
    forget_unless_held(store, a);
}

bool ol_adapters_drop_idle(ol_adapters *store)
{
    bool any = store->oldest != NULL;

    while (store->oldest)
        evict(store, store->oldest);
    return any;
}

void ol_adapters_free(ol_adapters *store)
{
    if (!store)
        return;
    (void)ol_adapters_drop_idle(store);
    assert(store->counts.resident == 0 && store->counts.bytes == 0);
    for (int i = 0; i < BUCKETS; i++)
        assert(!store->buckets[i]);
    free(store);
}

/* -- references and pins ----------------------------------------------------------------- */

ol_adapter *ol_adapters_ref(ol_adapters *store, const ol_digest *digest)
{
    ol_adapter *a = find_or_make(store, digest);

    if (a)
        a->refs++;
    return a;
}

void ol_adapters_unref(ol_adapters *store, ol_adapter *a)
{
    assert(a->refs > 0);
    a->refs--;
    forget_unless_held(store, a);
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
        lru_remove(store, a);
        store->counts.pinned_bytes += a->bytes;
    }
}

void ol_adapters_unpin(ol_adapters *store, ol_adapter *a)
{
    assert(a->pins > 0);
    if (--a->pins == 0) {
        lru_append(store, a);
        store->counts.pinned_bytes -= a->bytes;
        store->counts.releases++;
    }
}

void ol_adapters_hit(ol_adapters *store)
{
    store->counts.hits++;
}

/* -- arrival -------------------------------------------------------------------------------- */

/* Drops idle adapters until `bytes` more fit; false when they cannot. */
static bool make_room(ol_adapters *store, size_t bytes)
{
    const ol_adapters_counts *c = &store->counts;

    if (bytes > c->budget - c->pinned_bytes)
        return false;
    while (bytes > c->budget - c->bytes)
        evict(store, store->oldest);
    return true;
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
    *lora = NULL;
    for (;;) {
        ol_code code = store->how.table->lora_create(store->how.device, file->modules,
                                                     file->n_modules, lora, err);

        if (code == OL_OK)
            return OL_OK;
        *lora = NULL;
        if (code != OL_NOMEM || (!store->oldest && store->counts.resident == 0))
            return code;
        if (!store->oldest)
            return OL_OK;
        evict(store, store->oldest);
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
    lru_append(store, a);
    store->counts.bytes += bytes;
    store->counts.resident++;
    store->counts.loads++;
}

static ol_code keep(ol_adapters *store, const ol_adapter_file *file, ol_adapter *a,
                    ol_adapter_verdict *verdict, ol_error *err)
{
    ol_lora *lora = NULL;

    a->bytes = file->tensor_bytes;
    if (file->tensor_bytes > store->counts.budget)
        return ol_adapters_over_budget(store, file->tensor_bytes, 1, err);
    if (!make_room(store, file->tensor_bytes))
        return OL_OK;
    OL_TRY(place(store, file, &lora, err));
    if (!lora)
        return OL_OK;
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

static ol_code parse(const ol_adapters *store, const ol_adapter_bytes *b, ol_arena **arena,
                     ol_adapter_file *file, ol_error *err)
{
    *arena = ol_arena_create();
    if (!*arena)
        return ol_fail_nomem(err, b->weights_len, "an adapter");
    return ol_adapter_file_parse(b->weights, b->weights_len, b->config, b->config_len,
                                 store->how.base, *arena, file, err);
}

/* Of bytes that parse, the parser has made the digest on its way. */
static void digest_of(const ol_adapter_bytes *b, ol_code parsed, const ol_adapter_file *file,
                      ol_digest *digest)
{
    if (parsed == OL_OK)
        *digest = file->digest;
    else
        ol_adapter_digest(b->weights, b->weights_len, b->config, b->config_len, digest);
}

static ol_code put_parsed(ol_adapters *store, const ol_adapter_file *file,
                          ol_adapter_verdict *verdict, ol_error *err)
{
    ol_adapter *a = ol_adapters_ref(store, &file->digest);
    ol_code code;

    if (!a)
        return ol_fail_nomem(err, sizeof(*a), "an adapter");
    facts_of(file, &verdict->facts);
    code = keep(store, file, a, verdict, err);
    a->facts = verdict->facts;
    a->denied_at = verdict->kept ? 0 : store->counts.releases + 1;
    ol_adapters_unref(store, a);
    return code;
}

ol_code ol_adapters_put(ol_adapters *store, const ol_digest *expected,
                        const ol_adapter_bytes *bytes, ol_adapter_verdict *verdict, ol_error *err)
{
    const ol_adapter *there = ol_adapters_find(store, expected);
    ol_adapter_file file;
    ol_arena *arena;
    ol_digest digest;
    ol_code code;

    memset(verdict, 0, sizeof(*verdict));
    if (there) { /* a second host was as quick */
        *verdict = (ol_adapter_verdict){.kept = true, .ours = true, .facts = there->facts};
        return OL_OK;
    }
    code = parse(store, bytes, &arena, &file, err);
    digest_of(bytes, code, &file, &digest);
    verdict->ours = ol_digest_equal(&digest, expected);
    if (!verdict->ours)
        code = wrong_digest(expected, &digest, err);
    else if (code == OL_OK)
        code = put_parsed(store, &file, verdict, err);
    ol_arena_destroy(arena);
    return code;
}

ol_code ol_adapters_check(const ol_adapters *store, const ol_adapter_bytes *bytes,
                          ol_adapter_facts *facts, ol_error *err)
{
    ol_adapter_file file;
    ol_arena *arena;
    ol_code code = parse(store, bytes, &arena, &file, err);

    if (code == OL_OK)
        facts_of(&file, facts);
    if (code == OL_OK && file.tensor_bytes > store->counts.budget)
        code = ol_adapters_over_budget(store, file.tensor_bytes, 1, err);
    ol_arena_destroy(arena);
    return code;
}

ol_adapters_counts ol_adapters_count(const ol_adapters *store)
{
    return store->counts;
}
