/* queue_rows.c: see queue_rows.h. The worker's search path is pg_catalog alone, so that
 * operators need no qualification here. */
#include "queue_rows.h"

#include "arguments.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "mb/pg_wchar.h"
#include "spi.h"
#include "utf8.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

static uint64 as_owner(LoraStatement *statement, Datum *values, const char *nulls)
{
    LoraIdentity caller;
    uint64 n;

    lora_become_owner(&caller);
    n = lora_execute(statement, values, nulls, false);
    lora_become_caller(&caller);
    return n;
}

Oid lora_queue_relation(void)
{
    return get_relname_relid("queue", get_namespace_oid("openlora", false));
}

void lora_queue_set_end(LoraQueueItem *item, LoraQueueEnd end, int sqlstate, const char *message)
{
    item->end = end;
    item->sqlstate = sqlstate;
    item->error = MemoryContextStrdup(item->context, message);
}

static void notify(int64 id, const char *state)
{
    Async_Notify("openlora_queue", psprintf(INT64_FORMAT ": %s", id, state));
}

/* -- beginning ------------------------------------------------------------------------------- */

void lora_queue_recover(void)
{
    static LoraStatement recover = {
        "UPDATE openlora.queue SET"
        " state = CASE WHEN cancel THEN 'cancelled' WHEN attempts < $1 THEN 'queued'"
        " ELSE 'failed' END,"
        " error = CASE WHEN NOT cancel AND attempts >= $1 THEN"
        " format('the server was lost while it ran, in %s attempts', attempts) END,"
        " sqlstate = CASE WHEN NOT cancel AND attempts >= $1 THEN '57P02' END,"
        " ended_at = CASE WHEN cancel OR attempts >= $1 THEN clock_timestamp() END"
        " WHERE state = 'running' RETURNING id, state",
        1,
        {INT4OID}};
    Datum value = Int32GetDatum(lora_queue_max_attempts);
    uint64 n = as_owner(&recover, &value, NULL);

    for (uint64 row = 0; row < n; row++) {
        const char *state = lora_text(row, 2);

        if (strcmp(state, "queued") != 0)
            notify(lora_int64(row, 1), state);
    }
}

/* One that somebody holds does not count: its lock would hold up all others. */
static bool any_suspect(void)
{
    static LoraStatement find = {"SELECT 1 FROM openlora.queue WHERE state = 'queued'"
                                 " AND attempts >= $1 - 1 LIMIT 1 FOR UPDATE SKIP LOCKED",
                                 1,
                                 {INT4OID}};
    Datum value = Int32GetDatum(lora_queue_max_attempts);

    return as_owner(&find, &value, NULL) > 0;
}

static LoraQueueItem *make_item(uint64 row)
{
    MemoryContext context =
        AllocSetContextCreate(TopMemoryContext, "openlora queued request", ALLOCSET_SMALL_SIZES);
    LoraQueueItem *item = MemoryContextAllocZero(context, sizeof(*item));
    bool is_null;

    item->context = context;
    item->id = lora_int64(row, 1);
    item->role = (Oid)lora_int64(row, 2);
    item->attempts = DatumGetInt32(lora_value(row, 3, &is_null));
    item->priority = DatumGetInt32(lora_value(row, 4, &is_null));
    item->tenant_weight = DatumGetFloat8(lora_value(row, 5, &is_null));
    item->last_attempt = item->attempts >= lora_queue_max_attempts;
    return item;
}

LoraQueueItem *lora_queue_claim(int room, bool alone)
{
    static LoraStatement claim = {
        "WITH t AS MATERIALIZED (SELECT id FROM openlora.queue WHERE state = 'queued'"
        " AND (attempts >= $2 - 1) = $3 ORDER BY priority DESC, id LIMIT $1"
        " FOR UPDATE SKIP LOCKED)"
        " UPDATE openlora.queue q SET state = 'running', attempts = attempts + 1,"
        " started_at = clock_timestamp() FROM t WHERE q.id = t.id"
        " RETURNING q.id, q.role::oid::int8, q.attempts, q.priority, q.tenant_weight",
        3,
        {INT4OID, INT4OID, BOOLOID}};
    LoraQueueItem *list = NULL;
    bool suspect = any_suspect();
    Datum values[3] = {Int32GetDatum(suspect ? 1 : room), Int32GetDatum(lora_queue_max_attempts),
                       BoolGetDatum(suspect)};
    uint64 n;

    if (suspect && !alone)
        return NULL;
    n = as_owner(&claim, values, NULL);
    for (uint64 row = n; row > 0; row--) {
        LoraQueueItem *item = make_item(row - 1);

        item->next = list;
        list = item;
    }
    return list;
}

bool lora_queue_any_waits(void)
{
    static LoraStatement find = {
        "SELECT 1 FROM openlora.queue WHERE state = 'queued' LIMIT 1", 0, {InvalidOid}};

    return as_owner(&find, NULL, NULL) > 0;
}

bool lora_queue_read_arguments(LoraQueueItem *item, FunctionCallInfo fcinfo)
{
    static LoraStatement get = {
        "SELECT adapter_ids, prompt, weights, max_tokens, temperature, top_k, top_p, min_p,"
        " repetition_penalty, presence_penalty, frequency_penalty, logit_bias, seed, stop,"
        " ignore_eos FROM openlora.queue WHERE id = $1 AND state = 'running' AND NOT cancel",
        1,
        {INT8OID}};
    Datum id = Int64GetDatum(item->id);
    MemoryContext before;

    InitFunctionCallInfoData(*fcinfo, NULL, LORA_ARG_LOGPROBS, InvalidOid, NULL, NULL);
    if (as_owner(&get, &id, NULL) != 1) {
        lora_queue_set_end(item, LORA_END_CANCELLED, 0, "");
        return false;
    }
    before = MemoryContextSwitchTo(item->context);
    for (int i = 0; i < LORA_ARG_ON_ERROR; i++) {
        Form_pg_attribute a = TupleDescAttr(SPI_tuptable->tupdesc, i);

        fcinfo->args[i].value = lora_value(0, i + 1, &fcinfo->args[i].isnull);
        if (!fcinfo->args[i].isnull)
            fcinfo->args[i].value = datumCopy(fcinfo->args[i].value, a->attbyval, a->attlen);
    }
    fcinfo->args[LORA_ARG_ON_ERROR].isnull = true;
    MemoryContextSwitchTo(before);
    return true;
}

bool lora_queue_check_role(LoraQueueItem *item)
{
    static LoraStatement find = {
        "SELECT openlora.may_submit(oid) FROM pg_authid WHERE oid = $1", 1, {OIDOID}};
    Datum role = ObjectIdGetDatum(item->role);
    bool is_null;

    /* the catalogue is the worker's to read, not the owner's */
    if (lora_execute(&find, &role, NULL, true) != 1) {
        lora_queue_set_end(item, LORA_END_FAILED, ERRCODE_UNDEFINED_OBJECT,
                           "the role that submitted the request does not exist any more");
        return false;
    }
    if (DatumGetBool(lora_value(0, 1, &is_null)) && !is_null)
        return true;
    lora_queue_set_end(item, LORA_END_FAILED, ERRCODE_INSUFFICIENT_PRIVILEGE,
                       "the role that submitted the request may not call lora_submit any more");
    return false;
}

/* -- ending ---------------------------------------------------------------------------------- */

bool lora_queue_lock_row(LoraQueueItem *item)
{
    static LoraStatement lock = {"SELECT cancel FROM openlora.queue WHERE id = $1"
                                 " AND state = 'running' FOR UPDATE SKIP LOCKED",
                                 1,
                                 {INT8OID}};
    static LoraStatement look = {
        "SELECT 1 FROM openlora.queue WHERE id = $1 AND state = 'running'", 1, {INT8OID}};
    Datum id = Int64GetDatum(item->id);
    bool is_null;

    if (as_owner(&lock, &id, NULL) == 1) {
        if (DatumGetBool(lora_value(0, 1, &is_null)))
            item->end = LORA_END_CANCELLED;
        return true;
    }
    item->held = as_owner(&look, &id, NULL) > 0;
    item->gone = !item->held;
    return false;
}

/* What the end means for the row, in the order of LoraQueueEnd. */
static const char *state_of(LoraQueueItem *item)
{
    switch (item->end) {
    case LORA_END_DONE:
        return "done";
    case LORA_END_CANCELLED:
        return "cancelled";
    case LORA_END_UNCOUNTED:
        return "queued";
    case LORA_END_AGAIN:
        return item->last_attempt ? "failed" : "queued";
    default:
        return "failed";
    }
}

void lora_queue_write_end(LoraQueueItem *item, int64 inference)
{
    static LoraStatement end = {
        "UPDATE openlora.queue SET state = $2, result = $3, inference = $4, error = $5,"
        " sqlstate = $6, attempts = attempts - $7,"
        " ended_at = CASE WHEN $2 <> 'queued' THEN clock_timestamp() END WHERE id = $1",
        7,
        {INT8OID, TEXTOID, TEXTOID, INT8OID, TEXTOID, TEXTOID, INT4OID}};
    const char *state = state_of(item);
    bool done = item->end == LORA_END_DONE, failed = strcmp(state, "failed") == 0;
    const LoraResult *result = done ? lora_request_result(item->request) : NULL;
    Datum values[7] = {Int64GetDatum(item->id), CStringGetTextDatum(state)};
    char nulls[8] = "       ";

    nulls[2] = nulls[3] = done ? ' ' : 'n';
    nulls[4] = nulls[5] = failed ? ' ' : 'n';
    if (done) {
        values[2] = PointerGetDatum(lora_text_from_utf8(result->text.data, result->text.len));
        values[3] = Int64GetDatum(inference);
    }
    if (failed) {
        values[4] = CStringGetTextDatum(item->error);
        values[5] = CStringGetTextDatum(unpack_sql_state(item->sqlstate));
    }
    values[6] = Int32GetDatum(item->end == LORA_END_UNCOUNTED ? 1 : 0);
    (void)as_owner(&end, values, nulls);
    if (strcmp(state, "queued") != 0)
        notify(item->id, state);
}

int lora_queue_find_cancelled(int64 **ids)
{
    static LoraStatement find = {
        "SELECT id FROM openlora.queue WHERE state = 'running' AND cancel", 0, {InvalidOid}};
    uint64 n = as_owner(&find, NULL, NULL);

    *ids = n ? MemoryContextAlloc(TopMemoryContext, sizeof(int64) * n) : NULL;
    for (uint64 row = 0; row < n; row++)
        (*ids)[row] = lora_int64(row, 1);
    return (int)n;
}

void lora_queue_expire(void)
{
    static LoraStatement expire = {
        "DELETE FROM openlora.queue WHERE state IN ('done', 'failed', 'cancelled')"
        " AND ended_at < clock_timestamp() - make_interval(secs => $1)",
        1,
        {FLOAT8OID}};
    Datum value = Float8GetDatum(lora_queue_retention);

    if (lora_queue_retention >= 0)
        (void)as_owner(&expire, &value, NULL);
}

TimestampTz lora_queue_expires_next(void)
{
    static LoraStatement next = {
        "SELECT min(ended_at) + make_interval(secs => $1) FROM openlora.queue"
        " WHERE state IN ('done', 'failed', 'cancelled')",
        1,
        {FLOAT8OID}};
    Datum value = Float8GetDatum(lora_queue_retention), when;
    bool is_null;

    if (lora_queue_retention < 0)
        return 0;
    (void)as_owner(&next, &value, NULL);
    when = lora_value(0, 1, &is_null);
    return is_null ? 0 : DatumGetTimestampTz(when);
}
