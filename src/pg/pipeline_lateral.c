/*
 * pipeline_lateral.c: FROM t, LATERAL lora_complete(.., t.body) AS c: one row for each of
 * t's, so the join is no more than a target: see pipeline_plan.h.
 */
#include "pipeline_plan.h"

#include "catalog/pg_type.h"
#include "nodes/nodeFuncs.h"

/* Else it is called once, whatever the number of rows. */
static bool depends_on_row(Node *node, List *handed)
{
    ListCell *cell;

    if (!node)
        return false;
    if (IsA(node, Param) && ((Param *)node)->paramkind == PARAM_EXEC)
        foreach (cell, handed)
            if (((NestLoopParam *)lfirst(cell))->paramno == ((Param *)node)->paramid)
                return true;
    return expression_tree_walker(node, depends_on_row, handed);
}

bool lora_is_lateral_call(Plan *plan, LoraLateral *l)
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
    return !l->call->funcretset && lora_function_of(l->call->funcid) &&
           depends_on_row((Node *)l->call->args, join->nestParams);
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

static Node *field_of_call(LoraLateral *l, const Var *var)
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
static Node *without_join(Node *node, LoraLateral *l)
{
    Var *var = (Var *)node;

    if (!node)
        return NULL;
    if (IsA(node, Param)) {
        Node *handed = without_parameters(node, l->join->nestParams);

        return l->outer ? lora_through(handed, l->outer) : handed;
    }
    if (IsA(node, Var) && var->varno == OUTER_VAR && l->outer)
        return lora_through(node, l->outer);
    if (!IsA(node, Var) || var->varno == OUTER_VAR)
        return expression_tree_mutator(node, without_join, l);
    if (var->varno == INNER_VAR) {
        TargetEntry *target = list_nth(l->scan->scan.plan.targetlist, var->varattno - 1);

        return without_join((Node *)target->expr, l);
    }
    return field_of_call(l, var);
}

Plan *lora_put_for_join(Plan *plan, LoraLateral *l, PlannedStmt *statement)
{
    List *clauses = list_concat_copy(l->scan->scan.plan.qual, l->join->join.joinqual);
    int scanned = (int)l->scan->scan.scanrelid;
    LoraYield *y = lora_make_yield(plan, statement), *inner;
    LoraColumns outer = {.varno = OUTER_VAR};

    clauses = list_concat(clauses, plan->qual);
    if ((clauses && l->join->join.jointype != JOIN_INNER) || plan->initPlan ||
        lora_mentions_calls((Node *)clauses, statement) ||
        lora_has_odd_columns((Node *)clauses, &scanned) ||
        lora_has_odd_columns((Node *)l->scan->scan.plan.targetlist, &scanned))
        return plan;
    y->below = plan->lefttree;
    y->from_below = true;
    inner = lora_mergeable(plan->lefttree, clauses);
    l->call = (FuncExpr *)without_parameters((Node *)l->call, l->join->nestParams);
    if (inner) {
        outer.targets = inner->targets;
        l->outer = &outer;
        l->call = (FuncExpr *)lora_through((Node *)l->call, &outer);
        lora_begin_with(y, inner);
    }
    (void)lora_collect_calls((Node *)l->call, y->filter_stages, &y->found);
    if (!list_member_ptr(y->found.calls, l->call))
        return plan;
    y->targets = (List *)without_join((Node *)plan->targetlist, l);
    if (clauses)
        y->filter = (List *)without_join((Node *)clauses, l);
    lora_collect_node(y);
    return lora_yield(y);
}
