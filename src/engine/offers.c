/* offers.c: adapters that a host brings, beside the steps or at once, and what becomes of them. */
#include "engine/load.h"

/* -- beside the steps ----------------------------------------------------------------------- */

ol_code ol_engine_adapter_offer(ol_engine *engine, const ol_adapter_offer *what, ol_error *err)
{
    return load_offer(engine, what, err);
}

static void count_load(ol_engine *engine, load *l)
{
    l->record->loads++;
    l->record->load_us += l->us;
    if (l->copy)
        ol_adapters_count_copy_load(engine->adapters);
}

/* As if it had come just now: see ol_engine_adapter_put. */
static void take_load(ol_engine *engine, load *l, ol_adapter_result *result)
{
    ol_adapter_verdict verdict;

    load_unreserve(engine, l);
    if (!l->copy)
        ol_adapters_keep_copy(engine->adapters, l->record, &l->made, &l->near);
    result->code =
        ol_adapters_take(engine->adapters, &l->what.expected, &l->made, &verdict, &result->error);
    result->facts = verdict.facts;
    l->record->loading--;
    if (verdict.kept)
        count_load(engine, l);
    if (verdict.ours) {
        admission_arrived(engine, &l->what.expected);
        if (result->code == OL_DEVICE)
            engine->device_error = result->error; /* no fault of the adapter's */
        else if (result->code != OL_OK)
            admission_refuse(engine, &l->what.expected, &result->error);
    }
    engine->admission_due = true;
    ol_adapters_unref(engine->adapters, l->record);
    l->record = NULL;
    admission_run(engine);
}

static void take_any(ol_engine *engine, load *l, ol_adapter_result *result)
{
    *result = (ol_adapter_result){.tag = l->what.tag,
                                  .check = l->what.check,
                                  .offered = l->what.bytes,
                                  .bytes = l->what.weights_len + l->what.config_len};
    l->what.bytes = NULL;
    if (l->what.check) {
        result->code =
            ol_adapters_judge(engine->adapters, &l->made, &result->facts, &result->error);
        ol_adapters_drop(engine->adapters, &l->made);
    } else {
        take_load(engine, l, result);
    }
}

bool ol_engine_adapter_result(ol_engine *engine, ol_adapter_result *result)
{
    load *l;

    while ((l = (load *)(void *)ol_loader_next(engine->loader))) {
        bool offered = !l->copy;

        engine->blocked = false;
        if (load_again(engine, l))
            continue;
        take_any(engine, l, result);
        load_release(engine, l);
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

ol_code ol_engine_adapter_put(ol_engine *engine, const ol_digest *expected,
                              const ol_adapter_bytes *bytes, ol_adapter_facts *facts, ol_error *err)
{
    ol_adapter_verdict verdict;
    ol_code code = ol_adapters_put(engine->adapters, expected, bytes, &verdict, err);

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

ol_code ol_engine_adapter_check(ol_engine *engine, const ol_adapter_bytes *bytes,
                                ol_adapter_facts *facts, ol_error *err)
{
    return ol_adapters_check(engine->adapters, bytes, facts, err);
}

bool ol_engine_adapter_has(ol_engine *engine, const ol_digest *digest)
{
    return ol_adapters_find(engine->adapters, digest) != NULL;
}
