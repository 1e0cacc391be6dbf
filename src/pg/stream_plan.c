/*
 * stream_plan.c: lora_stream in FROM becomes a CustomScan: see stream.h.
 *
 * The node's scan tuple has the function's columns; a reference to the whole row becomes a
 * row of them. Scans whose rows are to be locked or written stay PostgreSQL's own, which
 * knows how to look at a row again: all of their rows are wanted anyway.
 */
#include "stream.h"

#include "funcapi.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "pipeline.h"

typedef struct Columns {
    int relation;
    List *targets; /* of the scan tuple */
    List *names;
} Columns;

static Node *column(TargetEntry *target)
{
    return (Node *)makeVarFromTargetEntry(INDEX_VAR, target);
}

static Node *whole_row(const Var *var, const Columns *columns)
{
    RowExpr *row = makeNode(RowExpr);
    ListCell *cell;

    row->row_typeid = var->vartype;
    row->row_format = COERCE_IMPLICIT_CAST;
    row->colnames = copyObject(columns->names);
    row->location = -1;
    foreach (cell, columns->targets)
        row->args = lappend(row->args, column(lfirst(cell)));
    return (Node *)row;
}

/* Over the scan tuple. */
static Node *over_columns(Node *node, Columns *columns)
{
    Var *var = (Var *)node;

    if (!node)
        return NULL;
    if (!IsA(node, Var) || var->varno != columns->relation)
        return expression_tree_mutator(node, over_columns, columns);
    if (var->varattno == 0)
        return whole_row(var, columns);
    return column(list_nth(columns->targets, var->varattno - 1));
}

/* As EXPLAIN is to show them: of the function. */
static void make_columns(Columns *columns, TupleDesc row, const RangeTblEntry *relation)
{
    columns->names = relation->eref->colnames;
    for (int i = 0; i < row->natts; i++) {
        Form_pg_attribute a = TupleDescAttr(row, i);
        Var *var = makeVar(columns->relation, (AttrNumber)(i + 1), a->atttypid, a->atttypmod,
                           a->attcollation, 0);

        columns->targets =
            lappend(columns->targets, makeTargetEntry((Expr *)var, (AttrNumber)(i + 1),
                                                      strVal(list_nth(columns->names, i)), false));
    }
}

/* The call, if this is the plain scan of one. */
static FuncExpr *stream_call(Plan *plan, List **parameters)
{
    FunctionScan *scan = (FunctionScan *)plan;
    RangeTblFunction *function;
    FuncExpr *call;
    int i = -1;

    if (!IsA(plan, FunctionScan) || list_length(scan->functions) != 1 || scan->funcordinality)
        return NULL;
    function = linitial(scan->functions);
    call = (FuncExpr *)function->funcexpr;
    if (!IsA(call, FuncExpr) || !call->funcretset || function->funccolnames ||
        function->funccolcount != LORA_STREAM_COLUMNS ||
        lora_function_of(call->funcid) != LORA_STREAM)
        return NULL;
    while ((i = bms_next_member(function->funcparams, i)) >= 0)
        *parameters = lappend_int(*parameters, i);
    return call;
}

static bool is_marked(int relation, const PlannedStmt *statement)
{
    ListCell *cell;

    foreach (cell, statement->rowMarks)
        if ((int)((PlanRowMark *)lfirst(cell))->rti == relation)
            return true;
    return false;
}

Plan *lora_put_stream(Plan *plan, PlannedStmt *statement)
{
    List *parameters = NIL;
    FuncExpr *call = stream_call(plan, &parameters);
    Columns columns = {0};
    CustomScan *scan;
    TupleDesc row;

    if (!call || is_marked((int)((Scan *)plan)->scanrelid, statement) ||
        get_expr_result_type((Node *)call, NULL, &row) != TYPEFUNC_COMPOSITE)
        return plan;
    columns.relation = (int)((Scan *)plan)->scanrelid;
    make_columns(&columns, row, rt_fetch(columns.relation, statement->rtable));
    scan = makeNode(CustomScan);
    scan->scan.plan = *plan;
    scan->scan.plan.type = T_CustomScan;
    scan->scan.plan.targetlist = (List *)over_columns((Node *)plan->targetlist, &columns);
    scan->scan.plan.qual = (List *)over_columns((Node *)plan->qual, &columns);
    scan->flags = CUSTOMPATH_SUPPORT_BACKWARD_SCAN;
#if PG_VERSION_NUM >= 150000
    scan->flags |= CUSTOMPATH_SUPPORT_PROJECTION;
#endif
    scan->methods = &lora_stream_methods;
    scan->custom_exprs = list_make1(call);
    scan->custom_private = parameters;
    scan->custom_scan_tlist = columns.targets;
    scan->custom_relids = bms_make_singleton(columns.relation);
    return (Plan *)scan;
}
