/* load.c: see load.h. */
#include "engine/load.h"

#include <stdlib.h>
#include <string.h>

/* Where they will be kept, if they are, they are read. */
static ol_adapter_bytes bytes_of(const load *l)
{
    const uint8_t *bytes = l->near.bytes ? l->near.bytes : l->what.bytes;

    return (ol_adapter_bytes){.weights = bytes,
                              .weights_len = l->what.weights_len,
                              .config = (const char *)bytes + l->what.weights_len,
                              .config_len = l->what.config_len};
}

static size_t offered(const load *l)
{
    return l->what.weights_len + l->what.config_len;
}

/* Into memory for a copy. */
static void bring_near(load *l)
{
    if (!l->keep)
        return;
    if (!l->near.bytes)
        l->near = ol_copies_memory(ol_adapters_copies(l->engine->adapters), offered(l));
    if (l->near.bytes)
        memcpy(l->near.bytes, l->what.bytes, offered(l));
}

static void read_offer(load *l)
{
    ol_adapter_bytes bytes;

    bring_near(l);
    bytes = bytes_of(l);
    ol_adapters_make(l->engine->adapters, &bytes, l->what.check ? NULL : &l->known, l->reserved > 0,
                     &l->made);
}

/* This thread begins or ends to compute. */
static void take_processor(const load *l, int change)
{
    const ol_device_table *table = l->engine->table;

    if (table->leave)
        table->leave(l->engine->device, change);
}

/* On the loader's thread. */
static void run_load(ol_job *job)
{
    load *l = (load *)(void *)job;
    uint64_t start = ol_now_us();

    take_processor(l, 1);
    if (l->copy)
        ol_adapters_make_of_copy(l->engine->adapters, l->copy, &l->known, l->reserved > 0,
                                 &l->made);
    else if (!l->again)
        read_offer(l);
    if (l->place.runs)
        ol_adapters_fill_place(l->engine->adapters, &l->place, &l->made);
    take_processor(l, -1);
    l->us += ol_now_us() - start;
}

/* -- holding and letting go ------------------------------------------------------------ */

void load_unreserve(ol_engine *engine, load *l)
{
    if (l->reserved)
        ol_adapters_unreserve(engine->adapters, l->reserved);
    l->reserved = 0;
}

void load_release(ol_engine *engine, load *l)
{
    load_unreserve(engine, l);
    ol_adapters_give_place(engine->adapters, &l->place);
    if (l->copy)
        ol_adapters_release_copy(l->copy);
    ol_copies_give(ol_adapters_copies(engine->adapters), &l->near);
    if (l->record) {
        l->record->loading--;
        ol_adapters_unref(engine->adapters, l->record);
    }
    free(l->what.bytes);
    free(l);
}

void load_drop(ol_job *job, void *context)
{
    ol_engine *engine = context;
    load *l = (load *)(void *)job;

    ol_adapters_drop(engine->adapters, &l->made);
    load_release(engine, l);
}

/* Pages of the pool, for what it is known to need. */
static bool reserve_place(ol_engine *engine, load *l, const ol_lora_need *need)
{
    if (!ol_adapters_take_place(engine->adapters, need, &l->place))
        return false;
    l->reserved = ol_adapters_place_bytes(engine->adapters, need);
    return true;
}

/* It is being read: nobody else need be asked for it. */
static ol_code hold_record(ol_engine *engine, load *l, ol_error *err)
{
    size_t bytes = l->what.weights_len;

    l->record = ol_adapters_ref(engine->adapters, &l->what.expected);
    if (!l->record)
        return ol_fail_nomem(err, sizeof(*l->record), "an adapter");
    l->record->loading++;
    l->known = (ol_adapter_known){l->what.expected, l->record->seal};
    l->keep = !l->record->copy && offered(l) > 0;
    if (l->keep)
        l->near = ol_copies_spare(ol_adapters_copies(engine->adapters), offered(l));
    if (engine->page_bytes) {
        if (!l->record->lora && l->record->bytes)
            (void)reserve_place(engine, l, &l->record->pages.need);
        return OL_OK;
    }
    if (l->record->bytes > bytes)
        bytes = l->record->bytes;
    if (!l->record->lora && bytes > 0 && ol_adapters_reserve(engine->adapters, bytes))
        l->reserved = bytes;
    return OL_OK;
}

static load *new_load(const ol_engine *engine)
{
    load *l = calloc(1, sizeof(*l));

    if (l) {
        l->job.run = run_load;
        l->engine = engine;
    }
    return l;
}

ol_code load_offer(ol_engine *engine, const ol_adapter_offer *what, ol_error *err)
{
    load *l = new_load(engine);
    ol_code code = OL_OK;

    if (!l) {
        free(what->bytes);
        return ol_fail_nomem(err, sizeof(*l), "an adapter");
    }
    l->what = *what;
    if (!what->check)
        code = hold_record(engine, l, err);
    if (code == OL_OK)
        code = ol_loader_submit(engine->loader, &l->job, err);
    if (code != OL_OK)
        load_release(engine, l);
    return code;
}

/* It has room already, or it would be read for nothing: then the host may as well be asked. */
static ol_code submit_copy(ol_engine *engine, load *l, ol_error *err)
{
    OL_TRY(hold_record(engine, l, err));
    l->copy = ol_adapters_hold_copy(engine->adapters, l->record);
    if (!l->reserved)
        return ol_fail(err, OL_LIMIT, "there is no room");
    return ol_loader_submit(engine->loader, &l->job, err);
}

bool load_copy(ol_engine *engine, const ol_adapter *adapter)
{
    ol_error ignored;
    load *l;

    if (!adapter->copy || !(l = new_load(engine)))
        return false;
    l->what.expected = adapter->digest;
    if (submit_copy(engine, l, &ignored) == OL_OK)
        return true;
    load_release(engine, l);
    return false;
}

bool load_again(ol_engine *engine, load *l)
{
    ol_error ignored;

    if (!engine->page_bytes || l->what.check || l->again || l->copy || l->made.code != OL_OK ||
        l->made.lora || !ol_digest_equal(&l->made.digest, &l->what.expected) || l->record->lora)
        return false;
    load_unreserve(engine, l);
    ol_adapters_give_place(engine->adapters, &l->place);
    if (!reserve_place(engine, l, &l->made.place.need))
        return false;
    l->again = true;
    return ol_loader_submit(engine->loader, &l->job, &ignored) == OL_OK;
}
