/*
 * pipeline_rows.c: rows in flight: see pipeline.h.
 *
 * A row is read, its calls are started stage by stage, and it is ready when there is
 * nothing to wait for. Rows leave in the order in which they came. A row that could not be
 * prepared keeps its error until its turn, and none is read after it.
 *
 * The ring holds more rows than calls are in flight, so that one long answer does not keep
 * those behind it from being replaced; work_mem bounds it.
 */
#include "pipeline.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "session.h"
#include "utils/datum.h"
#include "utils/memutils.h"

#define ROWS_PER_CALL 4   /* of the ring, for each call in flight */
#define PATIENCE_US 10000 /* reading goes on while the first row is ready */

static LoraRow *row_at(LoraPipeline *p, int i)
{
    return &p->rows[(p->first + i) % p->max_rows];
}

/* -- starting -------------------------------------------------------------------------------- */

static Datum argument_value(LoraPipeline *p, LoraNodeCall *call, int i, bool *is_null)
{
    Datum value = ExecEvalExpr(list_nth(call->arguments, i), p->arguments, is_null);

    if (*is_null || call->stays[i])
        return value;
    return datumCopy(value, call->by_value[i], call->lengths[i]);
}

/* The scans of a subplan stay open from one row to the next: they are the query's. */
static void evaluate_arguments(LoraPipeline *p, LoraNodeCall *call)
{
    ResourceOwner guard = CurrentResourceOwner;

    if (call->subplans)
        CurrentResourceOwner = p->owner;
    for (int i = 0; i < call->fcinfo->nargs; i++)
        call->fcinfo->args[i].value = argument_value(p, call, i, &call->fcinfo->args[i].isnull);
    CurrentResourceOwner = guard;
}

static void start_call(LoraPipeline *p, LoraNodeCall *call, LoraCall *made)
{
    evaluate_arguments(p, call);
    lora_call_start(made, call->function, call->fcinfo);
    if (!lora_call_ended(made)) {
        p->in_flight++;
        p->stats.most_in_flight = Max(p->stats.most_in_flight, p->in_flight);
    }
    p->stats.requests += made->request != NULL;
}

static void show_row(LoraPipeline *p, TupleTableSlot *slot, const LoraRow *row)
{
    int n = p->n_calls + p->n_columns;

    ExecClearTuple(slot);
    memcpy(slot->tts_values, row->values, sizeof(Datum) * (Size)n);
    memcpy(slot->tts_isnull, row->nulls, sizeof(bool) * (Size)n);
    ExecStoreVirtualTuple(slot);
}

/* Whether the filter, over what the calls before it have answered, lets the row pass. */
static bool passes(LoraPipeline *p, LoraRow *row)
{
    ResourceOwner guard = CurrentResourceOwner;
    bool result;

    if (row->started != p->filter_stages || p->filter_stages == p->n_stages || !row->started)
        return true;
    CurrentResourceOwner = p->owner;
    result = ExecQual(p->css.ss.ps.qual, p->arguments);
    CurrentResourceOwner = guard;
    ResetExprContext(p->arguments);
    return result;
}

static void start_stage(LoraPipeline *p, LoraRow *row)
{
    bool alone = p->in_flight == 0;

    show_row(p, p->work, row);
    p->arguments->ecxt_scantuple = p->work;
    if (!passes(p, row)) {
        row->filtered = row->ready = true;
        return;
    }
    for (int i = 0; i < p->n_calls; i++)
        if (p->calls[i].stage == row->started)
            start_call(p, &p->calls[i], &row->calls[i]);
    row->alone = alone;
    row->refused_at = 0;
    row->started++;
    ExecClearTuple(p->work);
    ResetExprContext(p->arguments);
}

/* An error in a row's arguments is that row's: it may never be asked for. Caught as
 * PL/pgSQL catches its own. */
static void start_guarded(LoraPipeline *p, LoraRow *row)
{
    MemoryContext before = CurrentMemoryContext;
    int in_flight = p->in_flight;

    p->owner = CurrentResourceOwner;
    BeginInternalSubTransaction(NULL);
    MemoryContextSwitchTo(row->context);
    PG_TRY();
    {
        start_stage(p, row);
        ReleaseCurrentSubTransaction();
    }
    PG_CATCH();
    {
        MemoryContextSwitchTo(row->context);
        row->thrown = CopyErrorData();
        FlushErrorState();
        RollbackAndReleaseCurrentSubTransaction();
        p->in_flight = in_flight;
        row->ready = p->at_end = true;
    }
    PG_END_TRY();
    MemoryContextSwitchTo(before);
    CurrentResourceOwner = p->owner;
    if (row->thrown && row->thrown->sqlerrcode == ERRCODE_QUERY_CANCELED)
        ReThrowError(row->thrown);
}

static void start_next_stage(LoraPipeline *p, LoraRow *row)
{
    MemoryContext before;

    if (!IsInParallelMode()) {
        start_guarded(p, row);
        return;
    }
    p->owner = CurrentResourceOwner;
    before = MemoryContextSwitchTo(row->context);
    start_stage(p, row);
    MemoryContextSwitchTo(before);
}

/* -- progress -------------------------------------------------------------------------------- */

/* The answers of a stage for the arguments of later ones. False: one of them is an error. */
static bool take_answers(LoraPipeline *p, LoraRow *row, int stage)
{
    MemoryContext before = MemoryContextSwitchTo(row->context);
    bool good = true;

    for (int i = 0; good && i < p->n_calls; i++)
        if (p->calls[i].stage == stage)
            good =
                lora_call_peek(&row->calls[i], p->calls[i].fcinfo, &row->values[i], &row->nulls[i]);
    MemoryContextSwitchTo(before);
    return good;
}

static int unended(LoraPipeline *p, LoraRow *row)
{
    int n = 0;

    for (int i = 0; i < p->n_calls; i++)
        n += p->calls[i].stage < row->started && !lora_call_ended(&row->calls[i]);
    return n;
}

static bool is_refused(LoraPipeline *p, LoraRow *row)
{
    for (int i = 0; i < p->n_calls; i++)
        if (p->calls[i].stage < row->started && lora_call_refused(&row->calls[i]))
            return true;
    return false;
}

static void send_again(LoraPipeline *p, LoraRow *row)
{
    MemoryContext before = MemoryContextSwitchTo(row->context);

    row->alone = p->in_flight == 0;
    row->refused_at = 0;
    for (int i = 0; i < p->n_calls; i++)
        if (p->calls[i].stage < row->started && lora_call_refused(&row->calls[i])) {
            lora_call_again(&row->calls[i]);
            p->in_flight += !lora_call_ended(&row->calls[i]);
        }
    MemoryContextSwitchTo(before);
}

/* True: others of this scan were in flight when it was refused, and as many are. */
static bool waits_for_fewer(LoraPipeline *p, LoraRow *row)
{
    bool waits;

    if (row->refused_at == 0) {
        row->refused_at = p->in_flight;
        p->room = Max(1, Min(p->room, p->in_flight));
    }
    waits = p->in_flight > 0 && p->in_flight >= row->refused_at;
    p->refusing |= waits;
    return waits;
}

/* A row that was refused is sent again when fewer of this scan are in flight; if it was the only
 * one, when another scan's call has ended. True if it has to wait for that. */
static bool waits_for_room(LoraPipeline *p, LoraRow *row)
{
    while (is_refused(p, row)) {
        if (row->alone ? !lora_requests_outlast_one() : waits_for_fewer(p, row))
            return !row->alone;
        send_again(p, row);
    }
    return false;
}

/* Starts what a row's answers allow. */
static void promote(LoraPipeline *p, LoraRow *row)
{
    while (!row->ready && unended(p, row) == 0) {
        if (waits_for_room(p, row))
            return;
        if (unended(p, row) > 0)
            return;
        if (row->started == p->n_stages || !take_answers(p, row, row->started - 1))
            row->ready = true;
        else
            start_next_stage(p, row);
    }
}

/* After any request has ended, or any tag has gone. */
static void survey(LoraPipeline *p)
{
    bool revive = p->seen_deaths != lora_session_deaths();

    if (!revive && p->seen_ends == lora_requests_ended())
        return;
    p->seen_deaths = lora_session_deaths();
    p->seen_ends = lora_requests_ended();
    p->in_flight = 0;
    p->refusing = false;
    for (int i = p->returned; i < p->n_rows; i++) {
        LoraRow *row = row_at(p, i);

        for (int k = 0; revive && k < p->n_calls; k++)
            if (row->calls[k].request)
                lora_request_revive(row->calls[k].request);
        p->in_flight += unended(p, row);
    }
    for (int i = p->returned; i < p->n_rows; i++)
        promote(p, row_at(p, i));
}

/* -- reading --------------------------------------------------------------------------------- */

static void take_columns(LoraPipeline *p, LoraRow *row, TupleTableSlot *from)
{
    int n = p->n_calls + p->n_columns;
    MemoryContext before = MemoryContextSwitchTo(row->context);
    MinimalTuple tuple = ExecCopySlotMinimalTuple(from);
    HeapTupleData whole = {.t_len = tuple->t_len + MINIMAL_TUPLE_OFFSET,
                           .t_data = (HeapTupleHeader)((char *)tuple - MINIMAL_TUPLE_OFFSET)};

    row->values = palloc0(sizeof(Datum) * (Size)(n + 1));
    row->nulls = palloc(sizeof(bool) * (Size)(n + 1));
    memset(row->nulls, true, (Size)n);
    row->calls = palloc0(sizeof(LoraCall) * (Size)p->n_calls);
    heap_deform_tuple(&whole, from->tts_tupleDescriptor, row->values + p->n_calls,
                      row->nulls + p->n_calls);
    MemoryContextSwitchTo(before);
}

static bool read_row(LoraPipeline *p)
{
    TupleTableSlot *from = ExecProcNode(outerPlanState(&p->css.ss.ps));
    LoraRow *row;

    if (TupIsNull(from)) {
        p->at_end = true;
        return false;
    }
    row = row_at(p, p->n_rows);
    if (!row->context)
        row->context = AllocSetContextCreate(p->rows_context, "openlora row", ALLOCSET_SMALL_SIZES);
    row->started = 0;
    row->ready = row->filtered = row->alone = false;
    row->thrown = NULL;
    take_columns(p, row, from);
    p->n_rows++;
    p->n_read++;
    promote(p, row);
    return true;
}

static bool has_room(LoraPipeline *p)
{
    return !p->at_end && !p->refusing && p->n_rows < p->max_rows && p->in_flight < p->room &&
           (p->bound < 0 || p->n_read < p->bound) &&
           (p->n_rows == 0 ||
            MemoryContextMemAllocated(p->rows_context, true) < (Size)work_mem * 1024);
}

void lora_rows_fill(LoraPipeline *p)
{
    instr_time start, now;

    if (p->n_rows > 0 && row_at(p, 0)->ready && p->in_flight > p->room - p->room / 5)
        return;
    INSTR_TIME_SET_CURRENT(start);
    while (has_room(p) && read_row(p)) {
        lora_requests_poll();
        survey(p);
        if (!row_at(p, 0)->ready)
            continue;
        INSTR_TIME_SET_CURRENT(now);
        INSTR_TIME_SUBTRACT(now, start);
        if (INSTR_TIME_GET_MICROSEC(now) > PATIENCE_US)
            return;
    }
}

/* -- the first row --------------------------------------------------------------------------- */

/* What the first row waits for; if it was refused, what is in its way. */
static LoraRequest *awaited(LoraPipeline *p)
{
    for (int i = 0; i < p->n_rows; i++) {
        LoraRow *row = row_at(p, i);

        for (int k = 0; k < p->n_calls; k++)
            if (p->calls[k].stage < row->started && !lora_call_ended(&row->calls[k]))
                return row->calls[k].request;
    }
    elog(ERROR, "a row waits for nothing");
}

void lora_rows_settle(LoraPipeline *p)
{
    LoraRow *row = row_at(p, 0);
    instr_time start, end;

    for (;;) {
        survey(p);
        if (row->ready)
            return;
        lora_rows_fill(p);
        survey(p);
        if (row->ready)
            return;
        INSTR_TIME_SET_CURRENT(start);
        lora_request_step(awaited(p));
        INSTR_TIME_SET_CURRENT(end);
        INSTR_TIME_ACCUM_DIFF(p->stats.waited, end, start);
    }
}

static void count_result(LoraPipeline *p, const LoraCall *call)
{
    const LoraResult *result = lora_request_result(call->request);

    p->stats.prompt_tokens += result->prompt_tokens;
    p->stats.cached_tokens += result->cached_tokens;
    p->stats.completion_tokens += result->completion_tokens;
}

LoraRow *lora_rows_finish(LoraPipeline *p)
{
    LoraRow *row = row_at(p, 0);
    MemoryContext before = MemoryContextSwitchTo(row->context);

    for (int i = 0; i < p->n_calls; i++) {
        if (p->calls[i].stage >= row->started)
            continue;
        if (row->calls[i].request)
            count_result(p, &row->calls[i]);
        row->values[i] = lora_call_finish(&row->calls[i], p->calls[i].fcinfo, &row->nulls[i]);
    }
    MemoryContextSwitchTo(before);
    if (row->thrown)
        ReThrowError(row->thrown);
    p->stats.rows++;
    return row;
}

/* -- the ring -------------------------------------------------------------------------------- */

void lora_rows_begin(LoraPipeline *p)
{
    p->rows_context =
        AllocSetContextCreate(CurrentMemoryContext, "openlora rows", ALLOCSET_SMALL_SIZES);
    p->max_rows = p->limit > 1 ? p->limit * ROWS_PER_CALL : 1;
    p->rows = palloc0(sizeof(LoraRow) * (Size)p->max_rows);
    p->room = p->limit;
}

/* Requests end with the memory. */
void lora_rows_drop_first(LoraPipeline *p)
{
    MemoryContextReset(row_at(p, 0)->context);
    p->first = (p->first + 1) % p->max_rows;
    p->n_rows--;
    p->returned = false;
    if (p->room < p->limit && !p->refusing)
        p->room++;
}

void lora_rows_drop_all(LoraPipeline *p)
{
    while (p->n_rows > 0)
        lora_rows_drop_first(p);
    p->first = p->in_flight = 0;
    p->n_read = 0;
    p->at_end = p->returned = p->refusing = false;
}
