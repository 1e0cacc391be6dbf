/* pipeline_node.c: the CustomScan node: see pipeline.h. */
#include "pipeline.h"

#include "catalog/objectaccess.h"
#include "catalog/pg_proc.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "shared.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* -- begin ----------------------------------------------------------------------------------- */

void lora_check_may_execute(Oid function)
{
#if PG_VERSION_NUM >= 160000
    AclResult result = object_aclcheck(ProcedureRelationId, function, GetUserId(), ACL_EXECUTE);
#else
    AclResult result = pg_proc_aclcheck(function, GetUserId(), ACL_EXECUTE);
#endif

    if (result != ACLCHECK_OK)
        aclcheck_error(result, OBJECT_FUNCTION, get_func_name(function));
    InvokeFunctionExecuteHook(function);
}

/* A subplan, or what one that needs no row (an InitPlan) gives: that is run when it is first asked
 * for. */
static bool runs_plans(Node *node, void *context)
{
    if (!node)
        return false;
    if (IsA(node, SubPlan) || (IsA(node, Param) && ((Param *)node)->paramkind == PARAM_EXEC))
        return true;
    return expression_tree_walker(node, runs_plans, context);
}

static void begin_arguments(LoraPipeline *p, LoraNodeCall *call, List *expressions)
{
    int n = list_length(expressions);

    call->arguments = ExecInitExprList(expressions, &p->css.ss.ps);
    call->subplans = runs_plans((Node *)expressions, NULL);
    call->stays = palloc(sizeof(bool) * (Size)(n + 1));
    call->by_value = palloc(sizeof(bool) * (Size)(n + 1));
    call->lengths = palloc(sizeof(int16) * (Size)(n + 1));
    for (int i = 0; i < n; i++) {
        Node *expression = list_nth(expressions, i);

        get_typlenbyval(exprType(expression), &call->lengths[i], &call->by_value[i]);
        call->stays[i] = call->by_value[i] || IsA(expression, Const) || IsA(expression, Var);
    }
}

static void begin_call(LoraPipeline *p, LoraNodeCall *call, FuncExpr *expression, int stage)
{
    int n = list_length(expression->args);

    lora_check_may_execute(expression->funcid);
    call->function = lora_function_of(expression->funcid);
    if (!call->function)
        elog(ERROR, "function %u is not openlora's any more", expression->funcid);
    call->stage = stage;
    fmgr_info(expression->funcid, &call->info);
    fmgr_info_set_expr((Node *)expression, &call->info);
    call->fcinfo = palloc0(SizeForFunctionCallInfo(n));
    InitFunctionCallInfoData(*call->fcinfo, &call->info, n, expression->inputcollid, NULL, NULL);
    begin_arguments(p, call, expression->args);
}

static void begin_calls(LoraPipeline *p, CustomScan *plan)
{
    List *stages = list_nth(plan->custom_private, LORA_PRIVATE_STAGES);

    p->n_calls = list_length(plan->custom_exprs);
    p->n_columns = list_length(plan->custom_scan_tlist) - p->n_calls;
    p->calls = palloc0(sizeof(LoraNodeCall) * (Size)p->n_calls);
    for (int i = 0; i < p->n_calls; i++) {
        int stage = list_nth_int(stages, i);

        begin_call(p, &p->calls[i], list_nth(plan->custom_exprs, i), stage);
        p->n_stages = Max(p->n_stages, stage + 1);
    }
}

static void begin_limit(LoraPipeline *p, CustomScan *plan)
{
    List *limit = list_nth(plan->custom_private, LORA_PRIVATE_LIMIT);

    p->bound = -1;
    if (!limit)
        return;
    p->limit_count = ExecInitExpr(linitial(limit), &p->css.ss.ps);
    p->limit_offset = ExecInitExpr(lsecond(limit), &p->css.ss.ps);
}

/* Enough to fill the engine, and as many that wait at its door: those that began together end
 * together, and the next are to be there. */
static int calls_in_flight(void)
{
    int depth = lora_pipeline_depth;

    if (depth < 0)
        depth = Min(2 * lora_max_sequences, lora_max_queued);
    return Max(1, depth);
}

static void pipeline_begin(CustomScanState *node, EState *estate, int flags)
{
    LoraPipeline *p = (LoraPipeline *)node;
    CustomScan *plan = (CustomScan *)node->ss.ps.plan;
    Node *filter_stages = list_nth(plan->custom_private, LORA_PRIVATE_FILTER);

    outerPlanState(node) = ExecInitNode(outerPlan(plan), estate, flags);
    p->filter_stages = intVal(filter_stages);
    begin_calls(p, plan);
    begin_limit(p, plan);
    p->work = ExecInitExtraTupleSlot(estate, node->ss.ss_ScanTupleSlot->tts_tupleDescriptor,
                                     &TTSOpsVirtual);
    p->arguments = CreateExprContext(estate);
    INSTR_TIME_SET_ZERO(p->stats.waited);
}

/* -- rows ------------------------------------------------------------------------------------ */

static int64 limit_value(LoraPipeline *p, ExprState *state, int64 otherwise)
{
    bool is_null;
    Datum value;

    if (!state)
        return otherwise;
    value = ExecEvalExprSwitchContext(state, p->css.ss.ps.ps_ExprContext, &is_null);
    return is_null ? otherwise : DatumGetInt64(value);
}

/* LIMIT raises its own errors. */
static void find_bound(LoraPipeline *p)
{
    int64 count = limit_value(p, p->limit_count, -1), offset = limit_value(p, p->limit_offset, 0);

    p->bound = -1;
    if (count < 0 || offset < 0 || count > PG_INT64_MAX - offset)
        return;
    p->bound = count + offset;
    ExecSetTupleBound(p->bound, outerPlanState(&p->css.ss.ps));
}

static void first_time(LoraPipeline *p)
{
    MemoryContext before = MemoryContextSwitchTo(p->css.ss.ps.state->es_query_cxt);

    p->limit = calls_in_flight();
    lora_rows_begin(p);
    MemoryContextSwitchTo(before);
    if (p->css.ss.ps.instrument)
        lora_pipeline_steps(&p->stats.steps, &p->stats.sequences);
    find_bound(p);
}

static TupleTableSlot *project(LoraPipeline *p, LoraRow *row)
{
    ScanState *ss = &p->css.ss;
    TupleTableSlot *slot = ss->ss_ScanTupleSlot;
    ExprContext *context = ss->ps.ps_ExprContext;
    int n = p->n_calls + p->n_columns;

    ExecClearTuple(slot);
    memcpy(slot->tts_values, row->values, sizeof(Datum) * (Size)n);
    memcpy(slot->tts_isnull, row->nulls, sizeof(bool) * (Size)n);
    ExecStoreVirtualTuple(slot);
    ResetExprContext(context);
    context->ecxt_scantuple = slot;
    if (row->filtered || (p->filter_stages == p->n_stages && !ExecQual(ss->ps.qual, context))) {
        InstrCountFiltered1(&p->css, 1);
        return NULL;
    }
    return ss->ps.ps_ProjInfo ? ExecProject(ss->ps.ps_ProjInfo) : slot;
}

static TupleTableSlot *pipeline_next(CustomScanState *node)
{
    LoraPipeline *p = (LoraPipeline *)node;
    TupleTableSlot *slot;

    if (!ScanDirectionIsForward(node->ss.ps.state->es_direction))
        elog(ERROR, "an openlora pipeline cannot go backward");
    if (!p->rows)
        first_time(p);
    for (;;) {
        CHECK_FOR_INTERRUPTS();
        if (p->returned)
            lora_rows_drop_first(p);
        lora_requests_poll();
        lora_rows_fill(p);
        if (p->n_rows == 0)
            return NULL;
        lora_rows_settle(p);
        slot = project(p, lora_rows_finish(p));
        p->returned = true;
        if (slot)
            return slot;
    }
}

static void pipeline_rescan(CustomScanState *node)
{
    LoraPipeline *p = (LoraPipeline *)node;

    if (p->rows) {
        lora_rows_drop_all(p);
        find_bound(p);
    }
    if (outerPlanState(node)->chgParam == NULL)
        ExecReScan(outerPlanState(node));
}

static void pipeline_end(CustomScanState *node)
{
    LoraPipeline *p = (LoraPipeline *)node;

    if (p->rows)
        lora_rows_drop_all(p);
    ExecEndNode(outerPlanState(node));
}

/* -- methods --------------------------------------------------------------------------------- */

static const CustomExecMethods exec_methods = {.CustomName = "openlora pipeline",
                                               .BeginCustomScan = pipeline_begin,
                                               .ExecCustomScan = pipeline_next,
                                               .EndCustomScan = pipeline_end,
                                               .ReScanCustomScan = pipeline_rescan,
                                               .ExplainCustomScan = lora_pipeline_explain};

static Node *create_state(CustomScan *plan)
{
    LoraPipeline *p = (LoraPipeline *)newNode(sizeof(LoraPipeline), T_CustomScanState);

    p->css.methods = &exec_methods;
    return (Node *)p;
}

const CustomScanMethods lora_pipeline_methods = {.CustomName = "openlora pipeline",
                                                 .CreateCustomScanState = create_state};
