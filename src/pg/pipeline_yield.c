/* pipeline_yield.c: making the node, and merging two: see pipeline_plan.h. */
#include "pipeline_plan.h"

#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/optimizer.h"

/* -- expressions over the scan tuple --------------------------------------------------------- */

Node *lora_scan_column(Node *leaf, int number)
{
    return (Node *)makeVar(INDEX_VAR, (AttrNumber)number, exprType(leaf), exprTypmod(leaf),
                           exprCollation(leaf), 0);
}

int lora_position(List *list, Node *node)
{
    ListCell *cell;

    foreach (cell, list)
        if (lfirst(cell) == node)
            return foreach_current_index(cell) + 1;
    return 0;
}

/* What only the node itself can compute. */
static bool is_leaf(Node *node)
{
    return IsA(node, Var) || IsA(node, Aggref) || IsA(node, WindowFunc) || IsA(node, GroupingFunc);
}

static int column_of(Node *leaf, LoraPlacement *at)
{
    ListCell *cell;

    if (at->from_below)
        return castNode(Var, leaf)->varattno;
    foreach (cell, at->columns)
        if (equal(lfirst(cell), leaf))
            return foreach_current_index(cell) + 1;
    at->columns = lappend(at->columns, leaf);
    return list_length(at->columns);
}

static Node *place(Node *node, LoraPlacement *at)
{
    int call;

    if (!node)
        return NULL;
    call = lora_position(at->calls, node);
    if (call)
        return lora_scan_column(node, call);
    if (is_leaf(node))
        return lora_scan_column(node, list_length(at->calls) + column_of(node, at));
    return expression_tree_mutator(node, place, at);
}

/* The calls themselves, over the scan tuple. */
List *lora_place_calls(LoraPlacement *at)
{
    List *placed = NIL;
    ListCell *cell;

    foreach (cell, at->calls)
        placed = lappend(placed, expression_tree_mutator((Node *)lfirst(cell), place, at));
    return placed;
}

/* -- the node -------------------------------------------------------------------------------- */

CustomScan *lora_make_scan(const Plan *like, Plan *below, const LoraPlannedCalls *found,
                           List *calls)
{
    CustomScan *scan = makeNode(CustomScan);
    Plan *plan = &scan->scan.plan;
    ListCell *cell;
    int n = 0;

    plan->startup_cost = like->startup_cost;
    plan->total_cost = like->total_cost;
    plan->plan_rows = like->plan_rows;
    plan->plan_width = like->plan_width;
    plan->plan_node_id = like->plan_node_id;
    plan->extParam = bms_copy(like->extParam);
    plan->allParam = bms_copy(like->allParam);
    plan->lefttree = below;
    scan->flags = 0;
    scan->methods = &lora_pipeline_methods;
    scan->custom_exprs = calls;
    scan->custom_private = list_make3(found->stages, makeInteger(0), NIL);
    foreach (cell, calls)
        scan->custom_scan_tlist =
            lappend(scan->custom_scan_tlist,
                    makeTargetEntry((Expr *)copyObject(lfirst(cell)), ++n, NULL, false));
    foreach (cell, below->targetlist) {
        TargetEntry *from = lfirst(cell);
        Var *var = makeVarFromTargetEntry(OUTER_VAR, from);

        scan->custom_scan_tlist =
            lappend(scan->custom_scan_tlist, makeTargetEntry((Expr *)var, ++n, NULL, false));
    }
    return scan;
}

static List *targets_of(List *columns)
{
    List *targets = NIL;
    ListCell *cell;

    foreach (cell, columns)
        targets =
            lappend(targets, makeTargetEntry(lfirst(cell), list_length(targets) + 1, NULL, false));
    return targets;
}

static List *yields; /* of the statement being planned */

Plan *lora_yield(LoraYield *y)
{
    LoraPlacement at = {y->found.calls, NIL, y->from_below};
    List *targets = (List *)place((Node *)y->targets, &at);
    List *filter = (List *)place((Node *)y->filter, &at);
    List *calls = lora_place_calls(&at);
    CustomScan *scan;

    if (!y->from_below)
        y->below->targetlist = targets_of(at.columns);
    scan = lora_make_scan(y->like, y->below, &y->found, calls);
    scan->scan.plan.targetlist = targets;
    scan->scan.plan.qual = filter;
    list_nth_cell(scan->custom_private, LORA_PRIVATE_FILTER)->ptr_value =
        makeInteger(y->filter_stages);
    y->scan = scan;
    yields = lappend(yields, y);
    return (Plan *)scan;
}

/* A clause behind the first is evaluated only for what the first lets pass: it must make no
 * calls but those that are made anyway. */
static bool collect_clause(Node *clause, int i, LoraPlannedCalls *found)
{
    int known = list_length(found->calls);
    bool early = lora_collect_calls(clause, 0, found);

    if (i == 0 || list_length(found->calls) == known)
        return early;
    found->calls = list_truncate(found->calls, known);
    found->stages = list_truncate(found->stages, known);
    return false;
}

/* Calls of the filter, then those of the targets, which are made if it lets the row pass;
 * that is, only if the filter can be evaluated before the row's turn. */
void lora_collect_node(LoraYield *y)
{
    y->all_early = true;
    if (y->filter_stages == 0) {
        for (int i = 0; i < list_length(y->filter); i++)
            y->all_early &= collect_clause(list_nth(y->filter, i), i, &y->found);
        if (y->filter)
            y->filter_stages = lora_stages(&y->found);
    }
    if (y->all_early)
        (void)lora_collect_calls((Node *)y->targets, y->filter_stages, &y->found);
}

LoraYield *lora_make_yield(Plan *plan, PlannedStmt *statement)
{
    LoraYield *y = palloc0(sizeof(*y));

    y->like = y->below = plan;
    y->found.statement = statement;
    return y;
}

/* -- merging --------------------------------------------------------------------------------- */

/* Two nodes one above the other become one, so that what the lower one answered for rows
 * that the upper one has read ahead is not attributed before they are asked for. */
static LoraYield *yield_of(const Plan *plan)
{
    ListCell *cell;

    foreach (cell, yields)
        if ((Plan *)((LoraYield *)lfirst(cell))->scan == plan)
            return lfirst(cell);
    return NULL;
}

LoraYield *lora_mergeable(const Plan *below, List *filter)
{
    LoraYield *inner = yield_of(below);

    if (!inner || below->initPlan || (filter && inner->filter) || !inner->all_early ||
        contain_volatile_functions((Node *)below->targetlist) ||
        contain_subplans((Node *)below->targetlist))
        return NULL;
    return inner;
}

/* Expressions over the lower node's targets become expressions over what it is made from.
 * Its calls stay the nodes they are. */
Node *lora_through(Node *node, LoraColumns *columns)
{
    if (!node)
        return NULL;
    if (IsA(node, Var) && ((Var *)node)->varno == columns->varno)
        return (Node *)((TargetEntry *)list_nth(columns->targets, ((Var *)node)->varattno - 1))
            ->expr;
    return expression_tree_mutator(node, lora_through, columns);
}

/* Its calls come first; what they are filtered by filters all. */
void lora_begin_with(LoraYield *y, const LoraYield *inner)
{
    y->below = inner->below;
    y->from_below = inner->from_below;
    y->found.calls = list_copy(inner->found.calls);
    y->found.stages = list_copy(inner->found.stages);
    if (!inner->filter)
        return;
    y->filter = inner->filter;
    y->filter_stages = inner->filter_stages;
}

/* LoraColumns only: no whole rows, no system columns. */
bool lora_has_odd_columns(Node *node, int *varno)
{
    if (!node)
        return false;
    if (IsA(node, Var))
        return ((Var *)node)->varno == *varno && ((Var *)node)->varattno <= 0;
    return expression_tree_walker(node, lora_has_odd_columns, varno);
}

void lora_forget_yields(void)
{
    yields = NIL;
}
