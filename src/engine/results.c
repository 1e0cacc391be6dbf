/* results.c: what came of adapters that were read, for the host and for those who wait for them; of
 * those that are put at once, too. */
#include "engine/engine_internal.h"
#include "engine/offers.h"

/* -- read beside the steps ------------------------------------------------------------------ */

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

    offer_unreserve(engine, o);
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

    while ((o = offer_next(engine))) {
        bool offered = !o->copy;

        take_any(engine, o, result);
        offer_release(engine, o);
        if (offered)
            return true;
    }
    return false;
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
