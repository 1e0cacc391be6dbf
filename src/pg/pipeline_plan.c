/*
 * pipeline_plan.c: the planner hook: see pipeline.h.
 *
 * Works on finished plans. A node whose targets call comes to lie below a CustomScan with
 * the same targets, and yields only the columns that these are computed from; all else in
 * its targets is computed when a row is returned, so that nothing but the calls' arguments
 * is evaluated early. Calls in the arguments of aggregates and of set-returning functions
 * are made by a CustomScan below the node instead, which adds their results as columns.
 */
#include "pipeline.h"

#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/optimizer.h"
#include "optimizer/planmain.h"
#include "optimizer/planner.h"
#include "utils/syscache.h"

static planner_hook_type previous_planner;

/* -- expressions over the scan tuple --------------------------------------------------------- */

typedef struct Placement {
    List *calls;     /* these nodes become columns 1.. */
    List *columns;   /* what the plan below yields: further columns */
    bool from_below; /* the plan below stays as it is: Vars are its columns */
} Placement;

static Node *column(Node *leaf, int number)
{
    return (Node *)makeVar(INDEX_VAR, (AttrNumber)number, exprType(leaf), exprTypmod(leaf),
                           exprCollation(leaf), 0);
}

static int position(List *list, Node *node)
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

static int column_of(Node *leaf, Placement *at)
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

static Node *place(Node *node, Placement *at)
{
    int call;

    if (!node)
        return NULL;
    call = position(at->calls, node);
    if (call)
        return column(node, call);
    if (is_leaf(node))
        return column(node, list_length(at->calls) + column_of(node, at));
    return expression_tree_mutator(node, place, at);
}

/* The calls themselves, over the scan tuple. */
static List *place_calls(Placement *at)
{
    List *placed = NIL;
    ListCell *cell;

    foreach (cell, at->calls)
        placed = lappend(placed, expression_tree_mutator((Node *)lfirst(cell), place, at));
    return placed;
}

/* -- the node -------------------------------------------------------------------------------- */

static CustomScan *make_scan(const Plan *like, Plan *below, const LoraPlannedCalls *found,
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

/* -- above a node ---------------------------------------------------------------------------- */

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

/* What a node is to yield, and from what. */
typedef struct Yield {
    Plan *like, *below;
    bool from_below; /* Vars are columns of `below`, which stays as it is */
    List *targets, *filter;
    int filter_stages;
    bool all_early; /* the filter can be evaluated before the row's turn */
    LoraPlannedCalls found;
    CustomScan *scan; /* when made */
} Yield;

static List *yields; /* of the statement being planned */

static Plan *yield(Yield *y)
{
    Placement at = {y->found.calls, NIL, y->from_below};
    List *targets = (List *)place((Node *)y->targets, &at);
    List *filter = (List *)place((Node *)y->filter, &at);
    List *calls = place_calls(&at);
    CustomScan *scan;

    if (!y->from_below)
        y->below->targetlist = targets_of(at.columns);
    scan = make_scan(y->like, y->below, &y->found, calls);
    scan->scan.plan.targetlist = targets;
    scan->scan.plan.qual = filter;
    list_nth_cell(scan->custom_private, LORA_PRIVATE_FILTER)->ptr_value =
        makeInteger(y->filter_stages);
    y->scan = scan;
    yields = lappend(yields, y);
    return (Plan *)scan;
}

/* Calls of the filter, then those of the targets, which are made if it lets the row pass;
 * that is, only if the filter can be evaluated before the row's turn. */
static void collect_node(Yield *y)
{
    int known = list_length(y->found.calls);

    y->all_early = true;
    if (y->filter_stages == 0) {
        for (int i = 0; i < list_length(y->filter); i++)
            if (i == 0 || known)
                y->all_early &= lora_collect_calls(list_nth(y->filter, i), 0, &y->found);
            else
                y->all_early &= !lora_mentions_calls(list_nth(y->filter, i), y->found.statement);
        if (y->filter)
            y->filter_stages = lora_stages(&y->found);
    }
    if (y->all_early)
        (void)lora_collect_calls((Node *)y->targets, y->filter_stages, &y->found);
}

/* -- merging --------------------------------------------------------------------------------- */

/* Two nodes one above the other become one, so that what the lower one answered for rows
 * that the upper one has read ahead is not attributed before they are asked for. */
static Yield *yield_of(const Plan *plan)
{
    ListCell *cell;

    foreach (cell, yields)
        if ((Plan *)((Yield *)lfirst(cell))->scan == plan)
            return lfirst(cell);
    return NULL;
}

static Yield *mergeable(const Plan *below, List *filter)
{
    Yield *inner = yield_of(below);

    if (!inner || below->initPlan || (filter && inner->filter) || !inner->all_early ||
        contain_volatile_functions((Node *)below->targetlist) ||
        contain_subplans((Node *)below->targetlist))
        return NULL;
    return inner;
}

typedef struct Columns {
    int varno;
    List *targets;
} Columns;

/* Expressions over the lower node's targets become expressions over what it is made from.
 * Its calls stay the nodes they are. */
static Node *through(Node *node, Columns *columns)
{
    if (!node)
        return NULL;
    if (IsA(node, Var) && ((Var *)node)->varno == columns->varno)
        return (Node *)((TargetEntry *)list_nth(columns->targets, ((Var *)node)->varattno - 1))
            ->expr;
    return expression_tree_mutator(node, through, columns);
}

/* Its calls come first; what they are filtered by filters all. */
static void begin_with(Yield *y, const Yield *inner)
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

/* Columns only: no whole rows, no system columns. */
static bool has_odd_columns(Node *node, int *varno)
{
    if (!node)
        return false;
    if (IsA(node, Var))
        return ((Var *)node)->varno == *varno && ((Var *)node)->varattno <= 0;
    return expression_tree_walker(node, has_odd_columns, varno);
}

static Yield *node_below(const Plan *plan, List *targets, List *filter, Columns *columns)
{
    Yield *inner = NULL;

    columns->varno = OUTER_VAR;
    if (only_projects(plan, filter)) {
        inner = mergeable(plan->lefttree, filter);
    } else if (IsA(plan, SubqueryScan) && list_length(plan->qual) == list_length(filter)) {
        inner = mergeable(((const SubqueryScan *)plan)->subplan, filter);
        columns->varno = (int)((const Scan *)plan)->scanrelid;
    }
    if (!inner || plan->initPlan || has_odd_columns((Node *)targets, &columns->varno) ||
        has_odd_columns((Node *)filter, &columns->varno))
        return NULL;
    columns->targets = inner->targets;
    return inner;
}

static Yield *make_yield(Plan *plan, PlannedStmt *statement)
{
    Yield *y = palloc0(sizeof(*y));

    y->like = y->below = plan;
    y->found.statement = statement;
    return y;
}

/* Whether the node was merged with one below. */
static bool merge(Plan *plan, Yield *y)
{
    List *filter = list_length(y->filter) ? y->filter : copyObject(plan->qual);
    Columns columns;
    Yield *inner = node_below(plan, y->targets, filter, &columns);

    if (!inner)
        return false;
    y->targets = (List *)through((Node *)y->targets, &columns);
    y->filter = (List *)through((Node *)filter, &columns);
    begin_with(y, inner);
    return true;
}

static Plan *put_above(Plan *plan, PlannedStmt *statement)
{
    Yield *y;
    int kept;
    bool merged;

    if (!lora_mentions_calls((Node *)plan->targetlist, statement) &&
        !lora_mentions_calls((Node *)plan->qual, statement))
        return plan;
    y = make_yield(plan, statement);
    y->targets = copyObject(plan->targetlist);
    y->filter = copyObject(calling_clauses(plan->qual, statement));
    merged = merge(plan, y);
    collect_node(y);
    if (!is_worth_it(plan, list_length(y->found.calls)))
        return plan;
    plan->async_capable = false;
    if (merged)
        return yield(y);
    if (only_projects(plan, y->filter)) {
        y->from_below = true;
        y->below = plan->lefttree;
    }
    kept = list_length(plan->qual) - list_length(y->filter);
    plan->qual = list_truncate(list_copy(plan->qual), kept);
    return yield(y);
}

/* -- instead of a join ----------------------------------------------------------------------- */

/* FROM t, LATERAL lora_complete(.., t.body) AS c: one row for each of t's. */
typedef struct Lateral {
    NestLoop *join;
    FunctionScan *scan;
    FuncExpr *call; /* over the outer side */
    Columns *outer; /* what the outer side's columns are, when it is one of our nodes */
} Lateral;

static bool is_lateral_call(Plan *plan, Lateral *l)
{
    NestLoop *join = (NestLoop *)plan;
    RangeTblFunction *function;

    if (!IsA(plan, NestLoop) || !IsA(plan->righttree, FunctionScan) ||
        (join->join.jointype != JOIN_INNER && join->join.jointype != JOIN_LEFT) ||
        join->join.inner_unique)
        return false;
    l->join = join;
    l->scan = (FunctionScan *)plan->righttree;
    if (list_length(l->scan->functions) != 1 || l->scan->funcordinality ||
        l->scan->scan.plan.initPlan)
        return false;
    function = linitial(l->scan->functions);
    if (!IsA(function->funcexpr, FuncExpr) || function->funccolnames)
        return false;
    l->call = (FuncExpr *)function->funcexpr;
    return !l->call->funcretset && lora_function_of(l->call->funcid);
}

/* The outer side's columns, instead of the parameters by which the join hands them down. */
static Node *without_parameters(Node *node, List *handed)
{
    ListCell *cell;

    if (!node)
        return NULL;
    if (IsA(node, Param) && ((Param *)node)->paramkind == PARAM_EXEC)
        foreach (cell, handed) {
            NestLoopParam *parameter = lfirst(cell);

            if (parameter->paramno == ((Param *)node)->paramid)
                return (Node *)copyObject(parameter->paramval);
        }
    return expression_tree_mutator(node, without_parameters, handed);
}

static Node *field_of_call(Lateral *l, const Var *var)
{
    FieldSelect *field;

    if (exprType((Node *)l->call) != RECORDOID)
        return (Node *)l->call;
    field = makeNode(FieldSelect);
    field->arg = (Expr *)l->call;
    field->fieldnum = var->varattno;
    field->resulttype = var->vartype;
    field->resulttypmod = var->vartypmod;
    field->resultcollid = var->varcollid;
    return (Node *)field;
}

/* Expressions of the join, or of the function's scan, over the outer side and the call. */
static Node *without_join(Node *node, Lateral *l)
{
    Var *var = (Var *)node;

    if (!node)
        return NULL;
    if (IsA(node, Param))
        return without_parameters(node, l->join->nestParams);
    if (IsA(node, Var) && var->varno == OUTER_VAR && l->outer)
        return through(node, l->outer);
    if (!IsA(node, Var) || var->varno == OUTER_VAR)
        return expression_tree_mutator(node, without_join, l);
    if (var->varno == INNER_VAR) {
        TargetEntry *target = list_nth(l->scan->scan.plan.targetlist, var->varattno - 1);

        return without_join((Node *)target->expr, l);
    }
    return field_of_call(l, var);
}

static Plan *put_for_join(Plan *plan, Lateral *l, PlannedStmt *statement)
{
    List *clauses = list_concat_copy(l->scan->scan.plan.qual, l->join->join.joinqual);
    int scanned = (int)l->scan->scan.scanrelid;
    Yield *y = make_yield(plan, statement), *inner;
    Columns outer = {.varno = OUTER_VAR};

    clauses = list_concat(clauses, plan->qual);
    if ((clauses && l->join->join.jointype != JOIN_INNER) || plan->initPlan ||
        lora_mentions_calls((Node *)clauses, statement) ||
        has_odd_columns((Node *)clauses, &scanned) ||
        has_odd_columns((Node *)l->scan->scan.plan.targetlist, &scanned))
        return plan;
    y->below = plan->lefttree;
    y->from_below = true;
    inner = mergeable(plan->lefttree, clauses);
    l->call = (FuncExpr *)without_parameters((Node *)l->call, l->join->nestParams);
    if (inner) {
        outer.targets = inner->targets;
        l->outer = &outer;
        l->call = (FuncExpr *)through((Node *)l->call, &outer);
        begin_with(y, inner);
    }
    (void)lora_collect_calls((Node *)l->call, y->filter_stages, &y->found);
    if (!list_member_ptr(y->found.calls, l->call))
        return plan;
    y->targets = (List *)without_join((Node *)plan->targetlist, l);
    if (clauses)
        y->filter = (List *)without_join((Node *)clauses, l);
    collect_node(y);
    return yield(y);
}

/* -- below a node ---------------------------------------------------------------------------- */

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
    call = position(with->calls, node);
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

        to->expr = (Expr *)column((Node *)from->expr, list_length(calls) + from->resno);
        targets = lappend(targets, to);
    }
    foreach (cell, calls)
        targets = lappend(targets, makeTargetEntry((Expr *)column(lfirst(cell), ++n),
                                                   list_length(targets) + 1, NULL, false));
    return targets;
}

static void put_below(Plan *plan, PlannedStmt *statement)
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
    scan = make_scan(plan, below, &found, place_calls(&(Placement){found.calls, NIL, true}));
    scan->scan.plan.plan_rows = below->plan_rows;
    scan->scan.plan.targetlist = widened_targets(below, found.calls);
    with = (Replacement){found.calls, list_length(below->targetlist) + 1};
    plan->targetlist = (List *)replace((Node *)plan->targetlist, &with);
    plan->qual = (List *)replace((Node *)plan->qual, &with);
    plan->lefttree = (Plan *)scan;
}

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

/* Rows that are locked or written below would be so ahead of their turn. */
static bool has_effects(const Plan *plan)
{
    while (plan) {
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
    Lateral lateral = {0};

    if (!plan)
        return NULL;
    check_stack_depth();
    visit_children(plan, statement);
    if (has_effects(plan))
        return plan;
    if ((IsA(plan, Agg) || IsA(plan, ProjectSet)) && plan->lefttree)
        put_below(plan, statement);
    if (may_replace && is_lateral_call(plan, &lateral))
        plan = put_for_join(plan, &lateral, statement);
    if (may_replace && computes_targets(plan))
        plan = put_above(plan, statement);
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

    yields = NIL;
    could_scroll = ExecSupportsBackwardScan(statement->planTree);
    foreach (cell, statement->subplans)
        lfirst(cell) = visit(lfirst(cell), statement, true);
    statement->planTree = visit(statement->planTree, statement, true);
    if ((cursor_options & CURSOR_OPT_SCROLL) && could_scroll &&
        !ExecSupportsBackwardScan(statement->planTree))
        statement->planTree = scrollable(statement->planTree);
    yields = NIL;
}

static PlannedStmt *plan_statement(Query *query, const char *text, int cursor_options,
                                   ParamListInfo parameters)
{
    planner_hook_type planner_below = previous_planner ? previous_planner : standard_planner;
    PlannedStmt *statement = planner_below(query, text, cursor_options, parameters);

    if (lora_pipeline_depth != 0 && may_call(statement))
        add_pipelines(statement, cursor_options);
    return statement;
}

void lora_pipeline_install_hooks(void)
{
    RegisterCustomScanMethods(&lora_pipeline_methods);
    previous_planner = planner_hook;
    planner_hook = plan_statement;
}
