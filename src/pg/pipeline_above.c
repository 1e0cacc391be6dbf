/*
 * pipeline_above.c: a CustomScan above a node of the plan, whose targets it takes over, or
 * instead of it when it does nothing else: see pipeline_plan.h.
 */
#include "pipeline_plan.h"

#include "stream.h"

static bool computes_targets(const Plan *plan)
{
    switch (nodeTag(plan)) {
    case T_Result:
    case T_SeqScan:
    case T_SampleScan:
    case T_IndexScan:
    case T_IndexOnlyScan:
    case T_BitmapHeapScan:
    case T_TidScan:
    case T_TidRangeScan:
    case T_SubqueryScan:
    case T_FunctionScan:
    case T_ValuesScan:
    case T_TableFuncScan:
    case T_CteScan:
    case T_NamedTuplestoreScan:
    case T_WorkTableScan:
    case T_NestLoop:
    case T_MergeJoin:
    case T_HashJoin:
    case T_Agg:
    case T_Group:
        return !plan->parallel_aware;
    case T_ForeignScan:
        return ((const ForeignScan *)plan)->operation == CMD_SELECT;
    case T_CustomScan:
        return ((const CustomScan *)plan)->methods == &lora_stream_methods;
    case T_WindowAgg: /* its conditions name its targets by number */
        return plan->qual == NIL
#if PG_VERSION_NUM >= 150000
               && ((const WindowAgg *)plan)->runCondition == NIL
#endif
            ;
    default:
        return false;
    }
}

/* A single row is worth it only when it makes several calls. Expressions of PL/pgSQL,
 * which have one target, must stay what they are. */
static bool is_worth_it(const Plan *plan, int n_calls)
{
    if (IsA(plan, Result) && !plan->lefttree)
        return n_calls > 1 && list_length(plan->targetlist) > 1;
    return n_calls > 0;
}

/* The clauses from the first one that calls. */
static List *calling_clauses(List *qual, PlannedStmt *statement)
{
    ListCell *cell;

    foreach (cell, qual)
        if (lora_mentions_calls(lfirst(cell), statement))
            return list_copy_tail(qual, foreach_current_index(cell));
    return NIL;
}

/* A node that does nothing else is replaced. */
static bool only_projects(const Plan *plan, List *filter)
{
    return IsA(plan, Result) && plan->lefttree && !((const Result *)plan)->resconstantqual &&
           !plan->initPlan && list_length(plan->qual) == list_length(filter);
}

static LoraYield *node_below(const Plan *plan, List *targets, List *filter, LoraColumns *columns)
{
    LoraYield *inner = NULL;

    columns->varno = OUTER_VAR;
    if (only_projects(plan, filter)) {
        inner = lora_mergeable(plan->lefttree, filter);
    } else if (IsA(plan, SubqueryScan) && list_length(plan->qual) == list_length(filter)) {
        inner = lora_mergeable(((const SubqueryScan *)plan)->subplan, filter);
        columns->varno = (int)((const Scan *)plan)->scanrelid;
    }
    if (!inner || plan->initPlan || lora_has_odd_columns((Node *)targets, &columns->varno) ||
        lora_has_odd_columns((Node *)filter, &columns->varno))
        return NULL;
    columns->targets = inner->targets;
    return inner;
}

/* Whether the node was merged with one below. */
static bool merge(Plan *plan, LoraYield *y)
{
    List *filter = list_length(y->filter) ? y->filter : copyObject(plan->qual);
    LoraColumns columns;
    LoraYield *inner = node_below(plan, y->targets, filter, &columns);

    if (!inner)
        return false;
    y->targets = (List *)lora_through((Node *)y->targets, &columns);
    y->filter = (List *)lora_through((Node *)filter, &columns);
    lora_begin_with(y, inner);
    return true;
}

Plan *lora_put_above(Plan *plan, PlannedStmt *statement)
{
    LoraYield *y;
    int kept;
    bool merged;

    if (!computes_targets(plan))
        return plan;
    if (!lora_mentions_calls((Node *)plan->targetlist, statement) &&
        !lora_mentions_calls((Node *)plan->qual, statement))
        return plan;
    y = lora_make_yield(plan, statement);
    y->targets = copyObject(plan->targetlist);
    y->filter = copyObject(calling_clauses(plan->qual, statement));
    merged = merge(plan, y);
    lora_collect_node(y);
    if (!is_worth_it(plan, list_length(y->found.calls)))
        return plan;
    plan->async_capable = false;
    if (merged)
        return lora_yield(y);
    if (only_projects(plan, y->filter)) {
        y->from_below = true;
        y->below = plan->lefttree;
    }
    kept = list_length(plan->qual) - list_length(y->filter);
    plan->qual = list_truncate(list_copy(plan->qual), kept);
    return lora_yield(y);
}
