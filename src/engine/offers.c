/* offers.c: adapters that are read and placed by the loader beside the steps: offered by a host, or
 * copies of ours. See offers.h. */
#include "engine/offers.h"

#include "engine/engine_internal.h"

#include <stdlib.h>

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

/* -- what it holds ------------------------------------------------------------------------ */

void offer_unreserve(ol_engine *engine, offer *o)
{
    if (o->reserved)
        ol_adapters_unreserve(engine->adapters, o->reserved);
    o->reserved = 0;
}

void offer_release(ol_engine *engine, offer *o)
{
    offer_unreserve(engine, o);
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
    offer_release(engine, o);
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

/* -- by a host ----------------------------------------------------------------------------- */

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
        offer_release(engine, o);
    return code;
}

/* -- of our own ----------------------------------------------------------------------------- */

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
    offer_release(engine, o);
    return false;
}

/* -- read --------------------------------------------------------------------------------- */

/* In a pool an adapter that is seen for the first time goes to the loader twice: read, it says what
 * pages it needs. */
static bool place_now(ol_engine *engine, offer *o)
{
    ol_error ignored;

    if (!engine->page_bytes || o->what.check || o->again || o->copy || o->made.code != OL_OK ||
        o->made.lora || !ol_digest_equal(&o->made.digest, &o->what.expected) || o->record->lora)
        return false;
    offer_unreserve(engine, o);
    ol_adapters_give_place(engine->adapters, &o->place);
    if (!reserve_place(engine, o, &o->made.place.need))
        return false;
    o->again = true;
    return ol_loader_submit(engine->loader, &o->job, &ignored) == OL_OK;
}

offer *offer_next(ol_engine *engine)
{
    offer *o;

    do {
        o = (offer *)(void *)ol_loader_next(engine->loader);
        if (o)
            engine->blocked = false;
    } while (o && place_now(engine, o));
    return o;
}

int ol_engine_adapter_fd(const ol_engine *engine)
{
    return ol_loader_fd(engine->loader);
}
