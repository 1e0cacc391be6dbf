/*
 * pipeline_below.c: a CustomScan below a node, for calls in arguments that the node evaluates
 * for each row of its input; it adds their results as columns: see pipeline_plan.h.
 */
#include "pipeline_plan.h"

#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"

/* Arguments of aggregates, evaluated for each row of input. */
static bool collect_aggregates(Node *node, LoraPlannedCalls *found)
{
    if (!node)
        return false;
    if (IsA(node, Aggref)) {
        Aggref *aggregate = (Aggref *)node;

        if (!aggregate->aggfilter && !DO_AGGSPLIT_COMBINE(aggregate->aggsplit))
            (void)lora_collect_calls((Node *)aggregate->args, 0, found);
        return false;
    }
    return expression_tree_walker(node, collect_aggregates, found);
}

/* Arguments of set-returning functions, evaluated once for each row of input. */
static void collect_sets(List *targets, LoraPlannedCalls *found)
{
    ListCell *cell;

    foreach (cell, targets) {
        Node *expr = (Node *)((TargetEntry *)lfirst(cell))->expr;

        if (IsA(expr, FuncExpr) && ((FuncExpr *)expr)->funcretset)
            (void)lora_collect_calls((Node *)((FuncExpr *)expr)->args, 0, found);
    }
}

typedef struct Replacement {
    List *calls;
    int first; /* column of the plan below for the first of them */
} Replacement;

static Node *replace(Node *node, Replacement *with)
{
    int call;

    if (!node)
        return NULL;
    call = lora_position(with->calls, node);
    if (call)
        return (Node *)makeVar(OUTER_VAR, (AttrNumber)(with->first + call - 1), exprType(node),
                               exprTypmod(node), exprCollation(node), 0);
    return expression_tree_mutator(node, replace, with);
}

/* The columns of the plan below, then the results. */
static List *widened_targets(const Plan *below, List *calls)
{
    List *targets = NIL;
    ListCell *cell;
    int n = 0;

    foreach (cell, below->targetlist) {
        TargetEntry *from = lfirst(cell), *to = flatCopyTargetEntry(from);

        to->expr = (Expr *)lora_scan_column((Node *)from->expr, list_length(calls) + from->resno);
        targets = lappend(targets, to);
    }
    foreach (cell, calls)
        targets = lappend(targets, makeTargetEntry((Expr *)lora_scan_column(lfirst(cell), ++n),
                                                   list_length(targets) + 1, NULL, false));
    return targets;
}

void lora_put_below(Plan *plan, PlannedStmt *statement)
{
    LoraPlannedCalls found = {statement, NIL, NIL};
    Plan *below = plan->lefttree;
    Replacement with;
    CustomScan *scan;

    plan->targetlist = copyObject(plan->targetlist);
    plan->qual = copyObject(plan->qual);
    if (IsA(plan, Agg)) {
        (void)collect_aggregates((Node *)plan->targetlist, &found);
        (void)collect_aggregates((Node *)plan->qual, &found);
    } else {
        collect_sets(plan->targetlist, &found);
    }
    if (!found.calls)
        return;
    scan = lora_make_scan(plan, below, &found,
                          lora_place_calls(&(LoraPlacement){found.calls, NIL, true}));
    scan->scan.plan.plan_rows = below->plan_rows;
    scan->scan.plan.targetlist = widened_targets(below, found.calls);
    with = (Replacement){found.calls, list_length(below->targetlist) + 1};
    plan->targetlist = (List *)replace((Node *)plan->targetlist, &with);
    plan->qual = (List *)replace((Node *)plan->qual, &with);
    plan->lefttree = (Plan *)scan;
}
