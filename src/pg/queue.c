/* queue.c: see queue.h. The functions; queue_worker.c is who does the work. */
#include "queue.h"

#include "access/xact.h"
#include "arguments.h"
#include "catalog/pg_type.h"
#include "database_worker.h"
#include "funcapi.h"
#include "shared.h"
#include "spi.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(lora_submit);
PG_FUNCTION_INFO_V1(lora_result);
PG_FUNCTION_INFO_V1(lora_cancel);

/* -- telling the worker at the end of the transaction ------------------------------------------ */

static bool touched; /* this transaction has rows of the queue that the worker shall look at */

static void at_transaction_end(XactEvent event, void *arg)
{
    if (!touched)
        return;
    if (event == XACT_EVENT_PRE_PREPARE)
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("cannot PREPARE a transaction that has called lora_submit or "
                               "lora_cancel")));
    if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT)
        return;
    touched = false;
    /* also after an abort: the worker passed over rows that were locked */
    lora_database_worker_ensure(LORA_WORKER_QUEUE, MyDatabaseId);
}

void lora_queue_install_hooks(void)
{
    RegisterXactCallback(at_transaction_end, NULL);
}

/* -- lora_submit ------------------------------------------------------------------------------- */

#define N_ARGUMENTS LORA_ARG_ON_ERROR /* those that are stored come before it */

static int64 insert(FunctionCallInfo fcinfo, const LoraSpec *spec, Oid caller)
{
    static LoraStatement statement = {
        "INSERT INTO openlora.queue (adapter_ids, prompt, weights, max_tokens, temperature, top_k,"
        " top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias, seed,"
        " stop, ignore_eos, role, priority, tenant_weight)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,"
        " $16::pg_catalog.regrole, $17, $18) RETURNING id",
        N_ARGUMENTS + 3,
        {TEXTARRAYOID, TEXTOID, FLOAT8ARRAYOID, INT4OID, FLOAT8OID, INT4OID, FLOAT8OID, FLOAT8OID,
         FLOAT8OID, FLOAT8OID, FLOAT8OID, JSONBOID, INT8OID, TEXTARRAYOID, BOOLOID, OIDOID, INT4OID,
         FLOAT8OID}};
    Datum values[N_ARGUMENTS + 3];
    char nulls[N_ARGUMENTS + 4];

    memset(nulls, ' ', sizeof(nulls));
    nulls[N_ARGUMENTS + 3] = 0;
    for (int i = 0; i < N_ARGUMENTS; i++) {
        values[i] = PG_GETARG_DATUM(i);
        nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
    }
    /* what is chosen at the time of the call is kept: an attempt repeats the one before */
    values[LORA_ARG_MAX_TOKENS] = Int32GetDatum(spec->sampling.max_tokens);
    values[LORA_ARG_SEED] = Int64GetDatum((int64)spec->sampling.seed);
    nulls[LORA_ARG_MAX_TOKENS] = nulls[LORA_ARG_SEED] = ' ';
    values[N_ARGUMENTS] = ObjectIdGetDatum(caller);
    values[N_ARGUMENTS + 1] = Int32GetDatum(lora_priority);
    values[N_ARGUMENTS + 2] = Float8GetDatum(lora_tenant_weight);
    lora_execute(&statement, values, nulls, false);
    return lora_int64(0, 1);
}

/* Everything is checked as lora_generate would, now; and again when it runs. */
Datum lora_submit(PG_FUNCTION_ARGS)
{
    LoraIdentity caller;
    bool null_on_error;
    LoraSpec spec;
    ol_error error;
    int64 id;

    if (PG_ARGISNULL(LORA_ARG_PROMPT))
        PG_RETURN_NULL();
    null_on_error = lora_on_error_null(fcinfo, LORA_ARG_ON_ERROR);
    if (!lora_check_preloaded(&error) ||
        !lora_spec_from_arguments(fcinfo, "lora_submit", &spec, &error)) {
        if (!null_on_error)
            lora_raise(&error);
        PG_RETURN_NULL();
    }
    lora_connect();
    lora_become_owner(&caller);
    id = insert(fcinfo, &spec, caller.user);
    lora_become_caller(&caller);
    SPI_finish();
    touched = true;
    PG_RETURN_INT64(id);
}

/* -- lora_result ------------------------------------------------------------------------- */

enum { COL_STATE, COL_RESULT, COL_INFERENCE, COL_ERROR, COLUMNS };

typedef struct Answer {
    Datum values[COLUMNS];
    bool nulls[COLUMNS];
    bool ended, own; /* own: this transaction has submitted it */
} Answer;

static void raise_unknown(int64 id)
{
    ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
                    errmsg("request " INT64_FORMAT " does not exist", id),
                    errhint("It may be another role's, or have expired: see "
                            "openlora.queue_retention.")));
}

/* As it is by now, with the rights of the tables' owner, for the role that submitted it and
 * its members. */
static void read_answer(int64 id, Answer *answer)
{
    static LoraStatement statement = {
        "SELECT state, result, inference, error, role::pg_catalog.oid::pg_catalog.int8, xmin,"
        " state OPERATOR(pg_catalog.<>) 'queued' AND state OPERATOR(pg_catalog.<>) 'running'"
        " FROM openlora.queue WHERE id OPERATOR(pg_catalog.=) $1",
        1,
        {INT8OID}};
    Datum value = Int64GetDatum(id);
    LoraIdentity caller;
    bool is_null;

    lora_connect();
    lora_become_owner(&caller);
    if (lora_read_latest(&statement, &value) != 1 ||
        !has_privs_of_role(caller.user, (Oid)lora_int64(0, 5)))
        raise_unknown(id);
    lora_become_caller(&caller);
    for (int i = 0; i < COLUMNS; i++) {
        answer->values[i] = lora_value(0, i + 1, &answer->nulls[i]);
        if (!answer->nulls[i] && i != COL_INFERENCE)
            answer->values[i] = SPI_datumTransfer(answer->values[i], false, -1);
    }
    answer->own =
        TransactionIdIsCurrentTransactionId(DatumGetTransactionId(lora_value(0, 6, &is_null)));
    answer->ended = DatumGetBool(lora_value(0, 7, &is_null));
    SPI_finish();
}

#define LONG_WAIT_MONTHS (100 * 12) /* what is longer waits as long, and is no date out of range   \
                                     */

static TimestampTz deadline(FunctionCallInfo fcinfo)
{
    TimestampTz now = GetCurrentTimestamp();
    Interval none = {0}, longest = {.month = LONG_WAIT_MONTHS}, *wait = &longest;

    if (PG_ARGISNULL(1))
        return now;
    if (DatumGetBool(DirectFunctionCall2(interval_lt, PG_GETARG_DATUM(1), IntervalPGetDatum(wait))))
        wait = PG_GETARG_INTERVAL_P(1);
    if (!DatumGetBool(
            DirectFunctionCall2(interval_gt, IntervalPGetDatum(wait), IntervalPGetDatum(&none))))
        return now;
    return DatumGetTimestampTz(DirectFunctionCall2(
        timestamptz_pl_interval, TimestampTzGetDatum(now), IntervalPGetDatum(wait)));
}

/* Reads, and sleeps until the queue's worker tells of an end. */
static void wait_for_answer(int64 id, TimestampTz until, Answer *answer)
{
    ConditionVariable *progress = lora_database_worker_progress(LORA_WORKER_QUEUE);
    bool asked = false;

    for (;;) {
        long left;

        ConditionVariablePrepareToSleep(progress);
        read_answer(id, answer);
        left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
        if (answer->ended || left <= 0)
            break;
        if (answer->own)
            ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                            errmsg("cannot wait for request " INT64_FORMAT, id),
                            errdetail("This transaction has submitted it: it begins when the "
                                      "transaction commits.")));
        if (!asked) /* should it have been given up for want of workers */
            lora_database_worker_ensure(LORA_WORKER_QUEUE, MyDatabaseId);
        asked = true;
        (void)ConditionVariableTimedSleep(progress, left, lora_wait_event());
    }
    ConditionVariableCancelSleep();
}

/* lora_result(id, wait) -> (state, result, inference_id, error) */
Datum lora_result(PG_FUNCTION_ARGS)
{
    TupleDesc desc;
    Answer answer;
    ol_error error;

    if (PG_ARGISNULL(0))
        PG_RETURN_NULL();
    if (!lora_check_preloaded(&error))
        lora_raise(&error);
    if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "lora_result must return a row");
    desc = BlessTupleDesc(desc);
    wait_for_answer(PG_GETARG_INT64(0), deadline(fcinfo), &answer);
    PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, answer.values, answer.nulls)));
}

/* -- lora_cancel ------------------------------------------------------------------------- */

/* A row that waits is cancelled here; of one that runs the worker is told. */
Datum lora_cancel(PG_FUNCTION_ARGS)
{
    static LoraStatement statement = {
        "UPDATE openlora.queue SET cancel = true,"
        " state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END,"
        " ended_at = CASE state WHEN 'queued' THEN pg_catalog.clock_timestamp() END"
        " WHERE id OPERATOR(pg_catalog.=) $1 AND (state OPERATOR(pg_catalog.=) 'queued'"
        " OR state OPERATOR(pg_catalog.=) 'running') RETURNING state",
        1,
        {INT8OID}};
    Datum id = PG_GETARG_DATUM(0);
    LoraIdentity caller;
    Answer answer;
    ol_error error;
    bool found;

    if (!lora_check_preloaded(&error))
        lora_raise(&error);
    read_answer(PG_GETARG_INT64(0), &answer); /* raises when it is not the caller's */
    lora_connect();
    lora_become_owner(&caller);
    touched = true;
    found = lora_execute(&statement, &id, NULL, false) > 0;
    if (found && strcmp(lora_text(0, 1), "cancelled") == 0)
        (void)DirectFunctionCall2(pg_notify, CStringGetTextDatum("openlora_queue"),
                                  PointerGetDatum(cstring_to_text(
                                      psprintf(INT64_FORMAT ": cancelled", PG_GETARG_INT64(0)))));
    lora_become_caller(&caller);
    SPI_finish();
    PG_RETURN_BOOL(found);
}
