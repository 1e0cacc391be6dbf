/* offers.c: adapters that a host brings: read and placed by the loader beside the steps, or at
 * once. */
#include "engine/engine_internal.h"

#include <stdlib.h>

typedef struct offer {
    ol_job job; /* first: the loader knows no more */
    const ol_engine *engine;
    ol_adapter_offer what;
    ol_adapter *record;     /* referenced while it is read; NULL for a check */
    ol_adapter_known known; /* unless it is a check */
    ol_copy *copy;          /* held; then nobody offered anything */
    size_t reserved;        /* room for it, or 0: it is read, but not placed there */
    ol_adapter_place place; /* that room in a pool */
    bool again;             /* it was read before, and has its room now */
    ol_adapter_made made;
    uint64_t us; /* what reading took */
} offer;

static ol_adapter_bytes bytes_of(const ol_adapter_offer *what)
{
    return (ol_adapter_bytes){.weights = what->bytes,
                              .weights_len = what->weights_len,
                              .config = (const char *)what->bytes + what->weights_len,
                              .config_len = what->config_len};
}

/* This thread begins or ends to compute. */
static void take_processor(const offer *o, int change)
{
    const ol_device_table *table = o->engine->table;

    if (table->leave)
        table->leave(o->engine->device, change);
}

/* On the loader's thread. */
static void run_offer(ol_job *job)
{
    offer *o = (offer *)(void *)job;
    ol_adapter_bytes bytes = bytes_of(&o->what);
    uint64_t start = ol_now_us();

    take_processor(o, 1);
    if (o->copy)
        ol_adapters_make_of_copy(o->engine->adapters, o->copy, &o->known, o->reserved > 0,
                                 &o->made);
    else if (!o->again)
        ol_adapters_make(o->engine->adapters, &bytes, &o->known, o->reserved > 0, &o->made);
    if (o->place.runs)
        ol_adapters_fill_place(o->engine->adapters, &o->place, &o->made);
    take_processor(o, -1);
    o->us += ol_now_us() - start;
}

/* -- in -------------------------------------------------------------------------------- */

static void unreserve(ol_engine *engine, offer *o)
{
    if (o->reserved)
        ol_adapters_unreserve(engine->adapters, o->reserved);
    o->reserved = 0;
}

static void release(ol_engine *engine, offer *o)
{
    unreserve(engine, o);
    ol_adapters_give_place(engine->adapters, &o->place);
    if (o->copy)
        ol_adapters_release_copy(o->copy);
    if (o->record) {
        o->record->loading--;
        ol_adapters_unref(engine->adapters, o->record);
    }
    free(o->what.bytes);
    free(o);
}

void offer_drop(ol_job *job, void *context)
{
    ol_engine *engine = context;
    offer *o = (offer *)(void *)job;

    ol_adapters_drop(engine->adapters, &o->made);
    release(engine, o);
}

/* Pages of the pool, for what it is known to need. */
static bool reserve_place(ol_engine *engine, offer *o, const ol_lora_need *need)
{
    if (!ol_adapters_take_place(engine->adapters, need, &o->place))
        return false;
    o->reserved = ol_adapters_place_bytes(engine->adapters, need);
    return true;
}

/* It is being read: nobody else need be asked for it. */
static ol_code hold_record(ol_engine *engine, offer *o, ol_error *err)
{
    size_t bytes = o->what.weights_len;

    o->record = ol_adapters_ref(engine->adapters, &o->what.expected);
    if (!o->record)
        return ol_fail_nomem(err, sizeof(*o->record), "an adapter");
    o->record->loading++;
    o->known = (ol_adapter_known){o->what.expected, o->record->seal};
    if (engine->page_bytes) {
        if (!o->record->lora && o->record->bytes)
            (void)reserve_place(engine, o, &o->record->pages.need);
        return OL_OK;
    }
    if (o->record->bytes > bytes)
        bytes = o->record->bytes;
    if (!o->record->lora && bytes > 0 && ol_adapters_reserve(engine->adapters, bytes))
        o->reserved = bytes;
    return OL_OK;
}

ol_code ol_engine_adapter_offer(ol_engine *engine, const ol_adapter_offer *what, ol_error *err)
{
    offer *o = calloc(1, sizeof(*o));
    ol_code code = OL_OK;

    if (!o) {
        free(what->bytes);
        return ol_fail_nomem(err, sizeof(*o), "an adapter");
    }
    o->job.run = run_offer;
    o->engine = engine;
    o->what = *what;
    if (!what->check)
        code = hold_record(engine, o, err);
    if (code == OL_OK)
        code = ol_loader_submit(engine->loader, &o->job, err);
    if (code != OL_OK)
        release(engine, o);
    return code;
}

/* It has room already, or it would be read for nothing: then the host may as well be asked. */
static ol_code submit_copy(ol_engine *engine, offer *o, ol_error *err)
{
    OL_TRY(hold_record(engine, o, err));
    o->copy = ol_adapters_hold_copy(engine->adapters, o->record);
    if (!o->reserved)
        return ol_fail(err, OL_LIMIT, "there is no room");
    return ol_loader_submit(engine->loader, &o->job, err);
}

bool offer_copy(ol_engine *engine, const ol_adapter *adapter)
{
    ol_error ignored;
    offer *o;

    if (!adapter->copy || !(o = calloc(1, sizeof(*o))))
        return false;
    o->job.run = run_offer;
    o->engine = engine;
    o->what.expected = adapter->digest;
    if (submit_copy(engine, o, &ignored) == OL_OK)
        return true;
    release(engine, o);
    return false;
}

/* -- out ---------------------------------------------------------------------------------- */

/* In a pool an adapter that is seen for the first time goes to the loader twice: read, it says what
 * pages it needs. */
static bool place_now(ol_engine *engine, offer *o)
{
    ol_error ignored;

    if (!engine->page_bytes || o->what.check || o->again || o->copy || o->made.code != OL_OK ||
        o->made.lora || !ol_digest_equal(&o->made.digest, &o->what.expected) || o->record->lora)
        return false;
    unreserve(engine, o);
    ol_adapters_give_place(engine->adapters, &o->place);
    if (!reserve_place(engine, o, &o->made.place.need))
        return false;
    o->again = true;
    return ol_loader_submit(engine->loader, &o->job, &ignored) == OL_OK;
}

static void count_load(ol_engine *engine, offer *o)
{
    o->record->loads++;
    o->record->load_us += o->us;
    if (o->copy)
        ol_adapters_count_copy_load(engine->adapters);
}

/* As if it had come just now: see ol_engine_adapter_put. */
static void take_offer(ol_engine *engine, offer *o, ol_adapter_result *result)
{
    ol_adapter_verdict verdict;

    unreserve(engine, o);
    if (!o->copy)
        ol_adapters_keep_copy(engine->adapters, o->record, &o->made, &result->offered,
                              &result->room);
    result->code =
        ol_adapters_take(engine->adapters, &o->what.expected, &o->made, &verdict, &result->error);
    result->facts = verdict.facts;
    o->record->loading--;
    if (verdict.kept)
        count_load(engine, o);
    if (verdict.ours) {
        admission_arrived(engine, &o->what.expected);
        if (result->code == OL_DEVICE)
            engine->device_error = result->error; /* no fault of the adapter's */
        else if (result->code != OL_OK)
            admission_refuse(engine, &o->what.expected, &result->error);
    }
    engine->admission_due = true;
    ol_adapters_unref(engine->adapters, o->record);
    o->record = NULL;
    admission_run(engine);
}

static void take_any(ol_engine *engine, offer *o, ol_adapter_result *result)
{
    *result = (ol_adapter_result){.tag = o->what.tag,
                                  .check = o->what.check,
                                  .offered = o->what.bytes,
                                  .bytes = o->what.weights_len + o->what.config_len};
    result->room = result->bytes;
    o->what.bytes = NULL;
    if (o->what.check) {
        result->code =
            ol_adapters_judge(engine->adapters, &o->made, &result->facts, &result->error);
        ol_adapters_drop(engine->adapters, &o->made);
    } else {
        take_offer(engine, o, result);
    }
}

bool ol_engine_adapter_result(ol_engine *engine, ol_adapter_result *result)
{
    offer *o;

    while ((o = (offer *)(void *)ol_loader_next(engine->loader))) {
        bool offered = !o->copy;

        engine->blocked = false;
        if (place_now(engine, o))
            continue;
        take_any(engine, o, result);
        release(engine, o);
        if (offered)
            return true;
    }
    return false;
}

int ol_engine_adapter_fd(const ol_engine *engine)
{
    return ol_loader_fd(engine->loader);
}

/* -- at once ---------------------------------------------------------------------------- */

ol_code ol_engine_adapter_put(ol_engine *engine, const ol_digest *expected, const void *weights,
                              size_t weights_len, const char *config, size_t config_len,
                              ol_adapter_facts *facts, ol_error *err)
{
    ol_adapter_bytes bytes = {weights, weights_len, config, config_len};
    ol_adapter_verdict verdict;
    ol_code code = ol_adapters_put(engine->adapters, expected, &bytes, &verdict, err);

    *facts = verdict.facts;
    engine->blocked = false;
    if (!verdict.ours)
        return code;
    admission_arrived(engine, expected);
    if (code != OL_OK)
        admission_refuse(engine, expected, err);
    admission_run(engine);
    return code;
}

ol_code ol_engine_adapter_check(ol_engine *engine, const void *weights, size_t weights_len,
                                const char *config, size_t config_len, ol_adapter_facts *facts,
                                ol_error *err)
{
    ol_adapter_bytes bytes = {weights, weights_len, config, config_len};

    return ol_adapters_check(engine->adapters, &bytes, facts, err);
}

bool ol_engine_adapter_has(ol_engine *engine, const ol_digest *digest)
{
    return ol_adapters_find(engine->adapters, digest) != NULL;
}
