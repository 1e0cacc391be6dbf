/*
 * arrival.c: what becomes of an adapter's bytes. They are read on any thread (make), and taken
 * into the store, or judged, or dropped, on its own.
 */
#include "engine/adapters_internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* -- bytes that are read ---------------------------------------------------------------- */

/* Such an adapter is refused in any case: sooner than it takes the host's memory. In a pool it is
 * known only later how the device keeps it: in a quarter of the bytes of F32 at best. */
static size_t most_read(const ol_adapters *store)
{
    size_t budget = store->how.budget;

    return !store->how.pool ? budget : budget > SIZE_MAX / 4 ? SIZE_MAX : 4 * budget;
}

static ol_code parse(const ol_adapters *store, ol_adapter_made *made)
{
    const ol_adapter_bytes *b = &made->bytes;

    made->arena = ol_arena_create();
    if (!made->arena)
        return ol_fail_nomem(&made->error, b->weights_len, "an adapter");
    return ol_adapter_file_parse_within(b, store->how.base, most_read(store), made->arena,
                                        &made->file, &made->error);
}

/* What it takes of the pool. */
static void find_need(const ol_adapters *store, ol_adapter_made *made)
{
    made->code = store->how.table->lora_need(store->how.device, store->how.kv, made->file.modules,
                                             made->file.n_modules, &made->place.need, &made->error);
    made->takes = ol_adapters_place_bytes(store, &made->place.need);
}

/* Bytes that were hashed before have the digest they had. Of those that nobody keeps, no seal. */
static void identify(const ol_adapters *store, const ol_adapter_known *known, ol_adapter_made *made)
{
    const ol_adapter_bytes *b = &made->bytes;

    if (known)
        made->seal =
            ol_seal_of(store->sealer, b->weights, b->weights_len, b->config, b->config_len);
    if (known && ol_seal_equal(&known->seal, &made->seal))
        made->digest = known->digest;
    else
        ol_adapter_digest(b->weights, b->weights_len, b->config, b->config_len, &made->digest);
}

/* In the device's layout, or what of the pool that takes. */
static void make_lora(const ol_adapters *store, bool want_lora, ol_adapter_made *made)
{
    const ol_device_table *table = store->how.table;
    ol_error ignored; /* placing is tried again where room can be made */

    made->takes = made->file.tensor_bytes;
    if (store->how.pool)
        find_need(store, made);
    else if (want_lora && made->file.tensor_bytes <= store->how.budget &&
             table->lora_create(store->how.device, made->file.modules, made->file.n_modules,
                                &made->lora, &ignored) != OL_OK)
        made->lora = NULL;
}

void ol_adapters_make(const ol_adapters *store, const ol_adapter_bytes *bytes,
                      const ol_adapter_known *known, bool want_lora, ol_adapter_made *made)
{
    memset(made, 0, sizeof(*made));
    made->bytes = *bytes;
    identify(store, known, made);
    made->code = parse(store, made);
    if (made->code == OL_OK)
        make_lora(store, want_lora, made);
}

void ol_adapters_make_of_copy(const ol_adapters *store, const ol_copy *copy,
                              const ol_adapter_known *known, bool want_lora, ol_adapter_made *made)
{
    memset(made, 0, sizeof(*made));
    made->digest = known->digest;
    made->seal = known->seal;
    made->file = copy->file;
    make_lora(store, want_lora, made);
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

void ol_adapters_drop(const ol_adapters *store, ol_adapter_made *made)
{
    if (made->lora)
        store->how.table->lora_free(store->how.device, made->lora);
    ol_arena_destroy(made->arena);
    ol_adapters_give_place(store, &made->place);
    made->lora = NULL;
    made->arena = NULL;
}

/* -- copies in the host's memory ------------------------------------------------------------ */

ol_copies *ol_adapters_copies(ol_adapters *store)
{
    return &store->copies;
}

void ol_adapters_keep_copy(ol_adapters *store, ol_adapter *a, ol_adapter_made *made,
                           ol_copy_buffer *buffer)
{
    if (made->code != OL_OK || made->takes > store->how.budget ||
        !ol_digest_equal(&made->digest, &a->digest))
        return;
    if (a->copy)
        ol_copies_touch(&store->copies, a->copy);
    else if (ol_copies_keep(&store->copies, &a->copy, &made->file, made->arena, buffer))
        made->arena = NULL;
}

ol_copy *ol_adapters_hold_copy(ol_adapters *store, ol_adapter *a)
{
    if (a->copy) {
        a->copy->readers++;
        ol_copies_touch(&store->copies, a->copy);
    }
    return a->copy;
}

void ol_adapters_release_copy(ol_copy *copy)
{
    assert(copy->readers > 0);
    copy->readers--;
}

void ol_adapters_count_copy_load(ol_adapters *store)
{
    store->counts.copy_loads++;
}

/* -- room for them ------------------------------------------------------------------------ */

ol_code ol_adapters_over_budget(const ol_adapters *store, size_t bytes, int n, ol_error *err)
{
    if (n == 1)
        ol_fail(err, OL_LIMIT, "the adapter does not fit the adapter cache");
    else
        ol_fail(err, OL_LIMIT, "the %d adapters of the request do not fit the adapter cache", n);
    ol_detail(err, "%zu bytes are needed; the cache's budget is %zu bytes.", bytes,
              store->how.budget);
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
        adapters_evict(store, first);
    }
}

static void make_resident(ol_adapters *store, ol_adapter *a, ol_lora *lora, size_t bytes)
{
    a->lora = lora;
    a->bytes = bytes;
    adapters_become_idle(store, a, a->uses > 0);
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
    if (file->tensor_bytes > store->how.budget)
        return ol_adapters_over_budget(store, file->tensor_bytes, 1, err);
    if (!lora) {
        if (!adapters_make_room(store, file->tensor_bytes))
            return OL_OK;
        OL_TRY(place(store, file, &lora, err));
        if (!lora)
            return OL_OK;
    }
    made->lora = NULL;
    /* Only now does the device tell what it really takes. */
    a->bytes = verdict->facts.device_bytes = store->how.table->lora_bytes(store->how.device, lora);
    if (adapters_make_room(store, a->bytes)) {
        make_resident(store, a, lora, a->bytes);
        verdict->kept = true;
        return OL_OK;
    }
    store->how.table->lora_free(store->how.device, lora);
    return a->bytes > store->how.budget ? ol_adapters_over_budget(store, a->bytes, 1, err) : OL_OK;
}

/* The same in a pool: the loader has filled its place, or it is filled here and now. */
static ol_code keep_in_pool(ol_adapters *store, ol_adapter_made *made, ol_adapter *a,
                            ol_adapter_verdict *verdict, ol_error *err)
{
    ol_adapter_place place = {0};

    a->bytes = made->takes;
    a->pages.need = made->place.need;
    if (made->takes > store->how.budget)
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

/* -- taken or judged ------------------------------------------------------------------------ */

static void facts_of(const ol_adapter_made *made, ol_adapter_facts *facts)
{
    const ol_adapter_file *file = &made->file;

    *facts = (ol_adapter_facts){.digest = made->digest,
                                .max_rank = file->max_rank,
                                .n_modules = file->n_modules,
                                .parameters = file->parameters,
                                .device_bytes = made->takes,
                                .module_mask = file->module_mask};
}

static ol_code wrong_digest(const ol_digest *expected, const ol_digest *found, ol_error *err)
{
    char want[OL_DIGEST_HEX], have[OL_DIGEST_HEX];

    ol_digest_hex(expected, want);
    ol_digest_hex(found, have);
    ol_fail(err, OL_INVALID, "the adapter's bytes are not those that the request names");
    return ol_detail(err, "Their digest is %s, not %s.", have, want);
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
    a->seal = made->seal;
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
    ol_adapter_known known = {.digest = *expected};
    ol_adapter_made made;

    if (there) { /* need not be read */
        *verdict = (ol_adapter_verdict){.kept = true, .ours = true, .facts = there->facts};
        return OL_OK;
    }
    ol_adapters_make(store, bytes, &known, false, &made);
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
    if (made->takes > store->how.budget)
        return ol_adapters_over_budget(store, made->takes, 1, err);
    return OL_OK;
}

ol_code ol_adapters_check(const ol_adapters *store, const ol_adapter_bytes *bytes,
                          ol_adapter_facts *facts, ol_error *err)
{
    ol_adapter_made made;
    ol_code code;

    ol_adapters_make(store, bytes, NULL, false, &made);
    code = ol_adapters_judge(store, &made, facts, err);
    ol_adapters_drop(store, &made);
    return code;
}
