/* status.c: lora_status: what the worker knows of the engine. */
#include "lora_pg.h"

#include "funcapi.h"
#include "rows.h"
#include "shared.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(lora_status);
PG_FUNCTION_INFO_V1(lora_load_progress);

#define COLUMNS 29

typedef struct Row {
    Datum values[COLUMNS];
    bool nulls[COLUMNS];
    int n;
} Row;

static void put_text(Row *row, const char *value)
{
    row->nulls[row->n] = value == NULL || value[0] == '\0';
    row->values[row->n] = row->nulls[row->n] ? (Datum)0 : CStringGetTextDatum(value);
    row->n++;
}

static void put_int64(Row *row, int64 value, bool known)
{
    row->nulls[row->n] = !known;
    row->values[row->n++] = Int64GetDatum(value);
}

static void put_int32(Row *row, int value, bool known)
{
    row->nulls[row->n] = !known;
    row->values[row->n++] = Int32GetDatum(value);
}

static const char *state_name(const LoraShared *s)
{
    static const char *const names[] = {"off", "loading", "ready", "broken", "restarting"};

    return s->worker_pid ? names[s->engine] : "no worker";
}

static void put_model(Row *row, const ol_engine_info *info, bool known)
{
    char digest[OL_DIGEST_HEX];

    ol_digest_hex(&info->model_digest, digest);
    put_text(row, known ? info->model_name : NULL);
    put_text(row, known ? digest : NULL);
    put_text(row, known ? info->architecture : NULL);
    put_text(row, known ? info->format : NULL);
    put_int64(row, info->parameters, known);
    put_int32(row, info->context, known);
    put_text(row, known ? info->device.name : NULL);
    put_text(row, known ? info->device.description : NULL);
    put_int32(row, info->device.threads, known);
    put_int64(row, (int64)info->device.memory_used, known);
}

static void put_counters(Row *row, const ol_engine_info *info, bool known)
{
    put_int32(row, info->kv_pages, known);
    put_int32(row, info->kv_pages_free, known);
    put_int32(row, info->running, known);
    put_int32(row, info->waiting, known);
    put_int32(row, info->adapters, known);
    put_int64(row, (int64)info->adapter_bytes, known);
    put_int32(row, info->adapter_copies, known);
    put_int64(row, (int64)info->adapter_copy_bytes, known);
    put_int64(row, (int64)info->steps, known);
    put_int64(row, (int64)info->prompt_tokens, known);
    put_int64(row, (int64)info->generated_tokens, known);
    put_int64(row, (int64)info->requests, known);
}

/* How long to wait for a report; a step of a large model takes long. In so many waits: should the
 * machine stand still in one of them, there are others for the engine to answer in. */
#define FRESH_MS 1000
#define FRESH_WAITS 10

/* Whether the report is newer than `asked`, or none is to be had; else asks for one. */
static bool is_fresh(TimestampTz asked)
{
    bool fresh;

    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    fresh = lora_shared->engine != LORA_ENGINE_READY || lora_shared->info_at >= asked ||
            !lora_shared->worker_pid;
    if (!fresh) /* another session may want one, too */
        lora_shared->status_wanted = true;
    LWLockRelease(lora_shared->lock);
    if (!fresh)
        (void)lora_wake_worker();
    return fresh;
}

/* Waits for a fresh report, for as long as is reasonable. */
void lora_refresh_status(void)
{
    TimestampTz asked = GetCurrentTimestamp();
    int waits = 0;

    while (waits < FRESH_WAITS && !is_fresh(asked))
        waits += ConditionVariableTimedSleep(&lora_shared->changed, FRESH_MS / FRESH_WAITS,
                                             lora_wait_event());
    ConditionVariableCancelSleep();
}

Datum lora_status(PG_FUNCTION_ARGS)
{
    LoraShared *copy = palloc(offsetof(LoraShared, slots));
    Row row = {.n = 0};
    TupleDesc desc;
    ol_error error;
    bool known;

    if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "lora_status must return a row");
    if (!lora_check_preloaded(&error))
        lora_raise(&error);
    lora_refresh_status();
    LWLockAcquire(lora_shared->lock, LW_SHARED);
    memcpy(copy, lora_shared, offsetof(LoraShared, slots));
    LWLockRelease(lora_shared->lock);
    known = copy->engine == LORA_ENGINE_READY;
    put_text(&row, state_name(copy));
    put_text(&row, copy->engine == LORA_ENGINE_BROKEN || copy->engine == LORA_ENGINE_RESTARTING
                       ? copy->engine_error.message
                       : NULL);
    row.nulls[row.n] = copy->engine != LORA_ENGINE_LOADING || copy->progress_total == 0;
    row.values[row.n++] = Float8GetDatum(
        copy->progress_total ? (double)copy->progress_done / (double)copy->progress_total : 0);
    put_int32(&row, copy->engine_pid, copy->engine_pid != 0);
    put_int64(&row, copy->restarts, true);
    row.nulls[row.n] = copy->engine_since == 0;
    row.values[row.n++] = TimestampTzGetDatum(copy->engine_since);
    put_model(&row, &copy->info, known);
    put_counters(&row, &copy->info, known);
    row.nulls[row.n] = !known;
    row.values[row.n++] = TimestampTzGetDatum(copy->info_at);
    return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), row.values, row.nulls));
}

/* Where models lie is not for everybody: the last part of the path. */
static const char *model_name(void)
{
    const char *slash = strrchr(lora_model, '/');

    return slash && slash[1] ? slash + 1 : lora_model;
}

/* A row while the engine loads its model: engine_pid, model, bytes_done, bytes_total, since. */
Datum lora_load_progress(PG_FUNCTION_ARGS)
{
    Datum values[5];
    bool nulls[5] = {false}, loading;
    ReturnSetInfo *set;
    ol_error error;

    if (!lora_check_preloaded(&error))
        lora_raise(&error);
    set = lora_begin_rows(fcinfo);
    LWLockAcquire(lora_shared->lock, LW_SHARED);
    loading = lora_shared->worker_pid != 0 && lora_shared->engine == LORA_ENGINE_LOADING;
    values[0] = Int32GetDatum(lora_shared->engine_pid);
    values[2] = Int64GetDatum((int64)lora_shared->progress_done);
    values[3] = Int64GetDatum((int64)lora_shared->progress_total);
    values[4] = TimestampTzGetDatum(lora_shared->engine_since);
    LWLockRelease(lora_shared->lock);
    values[1] = CStringGetTextDatum(model_name());
    if (loading)
        tuplestore_putvalues(set->setResult, set->setDesc, values, nulls);
    return (Datum)0;
}
