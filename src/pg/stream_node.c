/*
 * stream_node.c: the CustomScan that returns lora_stream's rows as they come: see stream.h.
 *
 * As a function's scan does, it keeps the rows, and reads them again when it is scanned
 * again or backward: one call stays one request and one attribution, wherever a join puts
 * it. It is called again when an argument from outside has changed.
 */
#include "stream.h"

#include "commands/explain.h"
#include "executor/executor.h"
#include "nodes/nodeFuncs.h"
#include "pipeline.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/ruleutils.h"
#include "utils/tuplestore.h"
#if PG_VERSION_NUM >= 180000
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#endif

typedef struct StreamScan {
    CustomScanState css;
    List *arguments; /* ExprState */
    FmgrInfo info;
    FunctionCallInfo fcinfo;
    MemoryContext context; /* of the arguments and the request */
    LoraStream *stream;    /* NULL: not called yet, or all rows are stored */
    bool ended;
    bool backward;
    Tuplestorestate *store; /* the rows so far */
    TupleTableSlot *stored; /* one of them */
    int64 requests, rows, cancelled;
} StreamScan;

/* -- begin and end --------------------------------------------------------------------------- */

static void begin(CustomScanState *node, EState *estate, int flags)
{
    StreamScan *s = (StreamScan *)node;
    FuncExpr *call = linitial(((CustomScan *)node->ss.ps.plan)->custom_exprs);
    int n = list_length(call->args);

    lora_check_may_execute(call->funcid);
    if (lora_function_of(call->funcid) != LORA_STREAM)
        elog(ERROR, "function %u is not openlora's any more", call->funcid);
    fmgr_info(call->funcid, &s->info);
    fmgr_info_set_expr((Node *)call, &s->info);
    s->fcinfo = palloc0(SizeForFunctionCallInfo(n));
    InitFunctionCallInfoData(*s->fcinfo, &s->info, n, call->inputcollid, NULL, NULL);
    s->arguments = ExecInitExprList(call->args, &node->ss.ps);
    s->backward = (flags & EXEC_FLAG_BACKWARD) != 0;
    s->stored = ExecInitExtraTupleSlot(estate, node->ss.ss_ScanTupleSlot->tts_tupleDescriptor,
                                       &TTSOpsMinimalTuple);
    s->context =
        AllocSetContextCreate(estate->es_query_cxt, "openlora stream", ALLOCSET_SMALL_SIZES);
}

/* Forgets the call; a request that still runs ends with its memory. */
static void forget(StreamScan *s)
{
    s->cancelled += s->stream != NULL;
    s->stream = NULL;
    s->ended = false;
    MemoryContextReset(s->context);
    if (s->store)
        tuplestore_end(s->store);
    s->store = NULL;
}

static void end(CustomScanState *node)
{
    forget((StreamScan *)node);
}

/* -- rows ------------------------------------------------------------------------------------ */

/* Arguments outlive the row of whoever hands them down. */
static Datum argument_value(StreamScan *s, int i, bool *is_null)
{
    Node *expression = list_nth(((FuncExpr *)s->info.fn_expr)->args, i);
    Datum value =
        ExecEvalExprSwitchContext(list_nth(s->arguments, i), s->css.ss.ps.ps_ExprContext, is_null);
    bool by_value;
    int16 length;

    get_typlenbyval(exprType(expression), &length, &by_value);
    return *is_null ? value : datumCopy(value, by_value, length);
}

static void call(StreamScan *s)
{
    MemoryContext before = MemoryContextSwitchTo(s->css.ss.ps.state->es_query_cxt);

    s->store = tuplestore_begin_heap(s->backward, false, work_mem);
    MemoryContextSwitchTo(s->context);
    for (int i = 0; i < s->fcinfo->nargs; i++)
        s->fcinfo->args[i].value = argument_value(s, i, &s->fcinfo->args[i].isnull);
    s->stream = lora_stream_open(s->fcinfo);
    s->requests++;
    MemoryContextSwitchTo(before);
}

/* A row that has just come goes to the store, too. */
static bool take_row(StreamScan *s, TupleTableSlot *slot)
{
    MemoryContext before;
    bool there;

    if (s->ended)
        return false;
    before = MemoryContextSwitchTo(s->css.ss.ps.ps_ExprContext->ecxt_per_tuple_memory);
    there = lora_stream_next(s->stream, slot->tts_values, slot->tts_isnull);
    MemoryContextSwitchTo(before);
    if (!there) {
        s->stream = NULL;
        s->ended = true;
        return false;
    }
    s->rows++;
    ExecStoreVirtualTuple(slot);
    tuplestore_puttupleslot(s->store, slot); /* which stays at its end */
    return true;
}

static bool stored_row(StreamScan *s, TupleTableSlot *slot, bool forward)
{
    if (!tuplestore_gettupleslot(s->store, forward, false, s->stored))
        return false;
    slot_getallattrs(s->stored);
    memcpy(slot->tts_values, s->stored->tts_values, sizeof(Datum) * LORA_STREAM_COLUMNS);
    memcpy(slot->tts_isnull, s->stored->tts_isnull, sizeof(bool) * LORA_STREAM_COLUMNS);
    ExecStoreVirtualTuple(slot);
    return true;
}

static TupleTableSlot *next_row(ScanState *node)
{
    StreamScan *s = (StreamScan *)node;
    TupleTableSlot *slot = node->ss_ScanTupleSlot;
    bool forward = ScanDirectionIsForward(node->ps.state->es_direction);

    ExecClearTuple(slot);
    if (!s->store)
        call(s);
    if (tuplestore_ateof(s->store)) {
        if (forward) {
            (void)take_row(s, slot);
            return slot;
        }
        /* turning round: the last row was returned already, unless the end was seen */
        if (!s->ended && !tuplestore_advance(s->store, false))
            return slot;
    }
    if (!stored_row(s, slot, forward) && forward)
        (void)take_row(s, slot);
    return slot;
}

static bool recheck(ScanState *node, TupleTableSlot *slot)
{
    return true;
}

static TupleTableSlot *next(CustomScanState *node)
{
    return ExecScan(&node->ss, next_row, recheck);
}

static void rescan(CustomScanState *node)
{
    StreamScan *s = (StreamScan *)node;
    List *parameters = ((CustomScan *)node->ss.ps.plan)->custom_private;
    ListCell *cell;

    ExecScanReScan(&node->ss);
    foreach (cell, parameters)
        if (bms_is_member(lfirst_int(cell), node->ss.ps.chgParam)) {
            forget(s);
            return;
        }
    if (s->store)
        tuplestore_rescan(s->store);
}

/* -- EXPLAIN --------------------------------------------------------------------------------- */

static void explain(CustomScanState *node, List *ancestors, ExplainState *es)
{
    StreamScan *s = (StreamScan *)node;
    CustomScan *plan = (CustomScan *)node->ss.ps.plan;
    FuncExpr *expression = linitial(plan->custom_exprs);
    List *context = set_deparse_context_plan(es->deparse_cxt, (Plan *)plan, ancestors);

    ExplainPropertyText("Call",
                        es->verbose
                            ? deparse_expression((Node *)expression, context, es->verbose, false)
                            : get_func_name(expression->funcid),
                        es);
    if (!es->analyze)
        return;
    ExplainPropertyInteger("Requests", NULL, s->requests, es);
    ExplainPropertyInteger("Rows Streamed", NULL, s->rows, es);
    ExplainPropertyInteger("Cancelled", NULL, s->cancelled + (s->stream != NULL), es);
}

/* -- methods --------------------------------------------------------------------------------- */

static const CustomExecMethods exec_methods = {.CustomName = "openlora stream",
                                               .BeginCustomScan = begin,
                                               .ExecCustomScan = next,
                                               .EndCustomScan = end,
                                               .ReScanCustomScan = rescan,
                                               .ExplainCustomScan = explain};

static Node *create_state(CustomScan *plan)
{
    StreamScan *s = (StreamScan *)newNode(sizeof(StreamScan), T_CustomScanState);

    s->css.methods = &exec_methods;
    return (Node *)s;
}

const CustomScanMethods lora_stream_methods = {.CustomName = "openlora stream",
                                               .CreateCustomScanState = create_state};
