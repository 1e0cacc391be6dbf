/*
 * pipeline_plan.c: the planner hook: see pipeline.h.
 *
 * Works on finished plans. A node whose targets call comes to lie below a CustomScan with
 * the same targets, and yields only the columns that these are computed from; all else in
 * its targets is computed when a row is returned, so that nothing but the calls' arguments
 * is evaluated early. Calls in the arguments of aggregates and of set-returning functions
 * are made by a CustomScan below the node instead, which adds their results as columns.
 */
#include "pipeline_plan.h"

#include "executor/executor.h"
#include "optimizer/optimizer.h"
#include "optimizer/planmain.h"
#include "optimizer/planner.h"
#include "stream.h"
#include "utils/syscache.h"

static planner_hook_type previous_planner;

/* -- LIMIT ----------------------------------------------------------------------------------- */

/* What LIMIT leaves unread is not started. */
static void pass_limit(const Limit *limit)
{
    Plan *plan = limit->plan.lefttree;

    while ((IsA(plan, SubqueryScan) || IsA(plan, Result)) && plan->qual == NIL) {
        if (IsA(plan, SubqueryScan))
            plan = ((SubqueryScan *)plan)->subplan;
        else if (plan->lefttree)
            plan = plan->lefttree;
        else
            return;
    }
    if (!IsA(plan, CustomScan) || ((CustomScan *)plan)->methods != &lora_pipeline_methods ||
        plan->qual != NIL || limit->limitOption != LIMIT_OPTION_COUNT || !limit->limitCount ||
        contain_volatile_functions(limit->limitCount) ||
        contain_volatile_functions(limit->limitOffset))
        return;
    list_nth_cell(((CustomScan *)plan)->custom_private, LORA_PRIVATE_LIMIT)->ptr_value =
        list_make2(copyObject(limit->limitCount), copyObject(limit->limitOffset));
}

/* -- the tree -------------------------------------------------------------------------------- */

static Plan *visit(Plan *plan, PlannedStmt *statement, bool may_replace);

static void visit_list(List *plans, PlannedStmt *statement)
{
    ListCell *cell;

    foreach (cell, plans)
        lfirst(cell) = visit(lfirst(cell), statement, true);
}

static void visit_children(Plan *plan, PlannedStmt *statement)
{
    switch (nodeTag(plan)) {
    case T_Append:
        visit_list(((Append *)plan)->appendplans, statement);
        return;
    case T_MergeAppend:
        visit_list(((MergeAppend *)plan)->mergeplans, statement);
        return;
    case T_CustomScan:
        visit_list(((CustomScan *)plan)->custom_plans, statement);
        return;
    case T_SubqueryScan: {
        SubqueryScan *scan = (SubqueryScan *)plan;

        scan->subplan = visit(scan->subplan, statement, true);
        return;
    }
    case T_BitmapHeapScan:
    case T_ForeignScan: /* its plan is for rechecks */
    case T_Gather:      /* workers have no requests */
    case T_GatherMerge:
        return;
    default:
        plan->lefttree = visit(plan->lefttree, statement, true);
        /* the inner side of a merge join marks and restores positions */
        plan->righttree = visit(plan->righttree, statement, !IsA(plan, MergeJoin));
    }
}

static bool has_effects(const Plan *plan);

static bool one_has_effects(const List *plans)
{
    ListCell *cell;

    foreach (cell, plans)
        if (has_effects(lfirst(cell)))
            return true;
    return false;
}

/* Rows that are locked or written below would be so ahead of their turn. */
static bool has_effects(const Plan *plan)
{
    while (plan) {
        if (IsA(plan, Append))
            return one_has_effects(((const Append *)plan)->appendplans);
        if (IsA(plan, MergeAppend))
            return one_has_effects(((const MergeAppend *)plan)->mergeplans);
        if (IsA(plan, LockRows) || IsA(plan, ModifyTable))
            return true;
        if (IsA(plan, Limit) || IsA(plan, Sort) || IsA(plan, Agg) || IsA(plan, CteScan))
            return false;
        if (plan->righttree && has_effects(plan->righttree))
            return true;
        if (IsA(plan, SubqueryScan))
            plan = ((const SubqueryScan *)plan)->subplan;
        else
            plan = plan->lefttree;
    }
    return false;
}

static Plan *visit(Plan *plan, PlannedStmt *statement, bool may_replace)
{
    LoraLateral lateral = {0};

    if (!plan)
        return NULL;
    check_stack_depth();
    visit_children(plan, statement);
    plan = lora_put_stream(plan, statement);
    if (lora_pipeline_depth == 0 || has_effects(plan))
        return plan;
    if ((IsA(plan, Agg) || IsA(plan, ProjectSet)) && plan->lefttree)
        lora_put_below(plan, statement);
    if (may_replace && lora_is_lateral_call(plan, &lateral))
        plan = lora_put_for_join(plan, &lateral, statement);
    if (may_replace)
        plan = lora_put_above(plan, statement);
    if (IsA(plan, Limit))
        pass_limit((Limit *)plan);
    return plan;
}

/* -- the hook -------------------------------------------------------------------------------- */

/* Functions that are not built in are dependencies of a plan: most have none. */
static bool may_call(const PlannedStmt *statement)
{
    ListCell *cell;

    foreach (cell, statement->invalItems)
        if (((PlanInvalItem *)lfirst(cell))->cacheId == PROCOID)
            return true;
    return false;
}

static Plan *scrollable(Plan *plan)
{
    Plan *material = materialize_finished_plan(plan);

    material->extParam = bms_copy(plan->extParam);
    material->allParam = bms_copy(plan->allParam);
    return material;
}

static void add_pipelines(PlannedStmt *statement, int cursor_options)
{
    bool could_scroll;
    ListCell *cell;

    lora_forget_yields();
    could_scroll = ExecSupportsBackwardScan(statement->planTree);
    foreach (cell, statement->subplans)
        lfirst(cell) = visit(lfirst(cell), statement, true);
    statement->planTree = visit(statement->planTree, statement, true);
    if ((cursor_options & CURSOR_OPT_SCROLL) && could_scroll &&
        !ExecSupportsBackwardScan(statement->planTree))
        statement->planTree = scrollable(statement->planTree);
    lora_forget_yields();
}

static PlannedStmt *plan_statement(Query *query, const char *text, int cursor_options,
                                   ParamListInfo parameters)
{
    planner_hook_type planner_below = previous_planner ? previous_planner : standard_planner;
    PlannedStmt *statement = planner_below(query, text, cursor_options, parameters);

    if (may_call(statement))
        add_pipelines(statement, cursor_options);
    return statement;
}

void lora_pipeline_install_hooks(void)
{
    RegisterCustomScanMethods(&lora_pipeline_methods);
    RegisterCustomScanMethods(&lora_stream_methods);
    previous_planner = planner_hook;
    planner_hook = plan_statement;
}
