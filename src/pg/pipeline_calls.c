/*
 * pipeline_calls.c: which calls of an expression may be started early: see pipeline.h.
 *
 * Those that are made whenever the expression is evaluated: not what CASE, COALESCE, AND,
 * OR and the like may leave out. And those whose arguments cost nobody anything: an
 * argument that makes a call of ours in a way that is not in the list would be paid for
 * by rows that nobody asked for.
 */
#include "pipeline.h"

#include "access/htup_details.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "nodes/nodeFuncs.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/syscache.h"

/* -- functions ------------------------------------------------------------------------------- */

typedef struct KnownFunction {
    Oid oid;
    LoraFunction function;
} KnownFunction;

static HTAB *known;

static void forget_known(Datum arg, int cache, uint32 hash)
{
    hash_destroy(known);
    known = NULL;
}

static void make_known(void)
{
    static bool registered;
    HASHCTL how = {.keysize = sizeof(Oid), .entrysize = sizeof(KnownFunction)};

    known = hash_create("openlora functions", 32, &how, HASH_ELEM | HASH_BLOBS);
    if (registered)
        return;
    CacheRegisterSyscacheCallback(PROCOID, forget_known, (Datum)0);
    registered = true;
}

/* Only libraries with our name are looked into: others need not be there to plan. */
static bool may_be_ours(HeapTuple tuple)
{
    Form_pg_proc proc = (Form_pg_proc)GETSTRUCT(tuple);
    const char *library, *name;
    bool is_null;
    Datum bin;

    if (proc->prolang != ClanguageId)
        return false;
    bin = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_probin, &is_null);
    if (is_null)
        return false;
    library = TextDatumGetCString(bin);
    name = strrchr(library, '/');
    return strncmp(name ? name + 1 : library, "openlora", 8) == 0;
}

/* By the code that would run: a function with SET or SECURITY DEFINER runs other code
 * first, and is none of ours. */
static LoraFunction look_up(Oid oid)
{
    HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(oid));
    FmgrInfo info;
    bool ours;

    if (!HeapTupleIsValid(tuple))
        return LORA_NO_FUNCTION;
    ours = may_be_ours(tuple);
    ReleaseSysCache(tuple);
    if (!ours)
        return LORA_NO_FUNCTION;
    fmgr_info(oid, &info);
    return lora_function_at(info.fn_addr);
}

LoraFunction lora_function_of(Oid oid)
{
    KnownFunction *entry = known ? hash_search(known, &oid, HASH_FIND, NULL) : NULL;
    LoraFunction function;

    if (entry)
        return entry->function;
    function = look_up(oid); /* may come with invalidations */
    if (!known)
        make_known();
    entry = hash_search(known, &oid, HASH_ENTER, NULL);
    entry->function = function;
    return function;
}

static LoraFunction function_of(Node *node)
{
    FuncExpr *call = (FuncExpr *)node;

    return IsA(node, FuncExpr) && !call->funcretset ? lora_function_of(call->funcid)
                                                    : LORA_NO_FUNCTION;
}

/* -- mentions -------------------------------------------------------------------------------- */

static bool mentions(Node *node, PlannedStmt *statement);

/* Looked at as a whole: targets and filters of its nodes. */
static bool plan_mentions(Plan *plan, PlannedStmt *statement)
{
    List *children = NIL;
    ListCell *cell;

    if (!plan)
        return false;
    if (mentions((Node *)plan->targetlist, statement) || mentions((Node *)plan->qual, statement) ||
        plan_mentions(plan->lefttree, statement) || plan_mentions(plan->righttree, statement))
        return true;
    if (IsA(plan, SubqueryScan))
        return plan_mentions(((SubqueryScan *)plan)->subplan, statement);
    if (IsA(plan, FunctionScan))
        return mentions((Node *)((FunctionScan *)plan)->functions, statement);
    if (IsA(plan, ValuesScan))
        return mentions((Node *)((ValuesScan *)plan)->values_lists, statement);
    if (IsA(plan, Append))
        children = ((Append *)plan)->appendplans;
    else if (IsA(plan, MergeAppend))
        children = ((MergeAppend *)plan)->mergeplans;
    else if (IsA(plan, CustomScan)) {
        if (((CustomScan *)plan)->methods == &lora_pipeline_methods)
            return true;
        if (mentions((Node *)((CustomScan *)plan)->custom_exprs, statement))
            return true;
        children = ((CustomScan *)plan)->custom_plans;
    }
    foreach (cell, children)
        if (plan_mentions(lfirst(cell), statement))
            return true;
    return false;
}

static bool mentions(Node *node, PlannedStmt *statement)
{
    if (!node)
        return false;
    if (function_of(node))
        return true;
    if (IsA(node, CaseWhen))
        return mentions((Node *)((CaseWhen *)node)->expr, statement) ||
               mentions((Node *)((CaseWhen *)node)->result, statement);
    if (IsA(node, RangeTblFunction))
        return mentions(((RangeTblFunction *)node)->funcexpr, statement);
    if (IsA(node, SubPlan)) {
        int id = ((SubPlan *)node)->plan_id;

        if (plan_mentions(list_nth(statement->subplans, id - 1), statement))
            return true;
    }
    return expression_tree_walker(node, mentions, statement);
}

bool lora_mentions_calls(Node *expression, PlannedStmt *statement)
{
    check_stack_depth();
    return mentions(expression, statement);
}

/* -- collecting ------------------------------------------------------------------------------ */

typedef struct Collection {
    LoraPlannedCalls *found;
    int stage;    /* the first that could use this expression's value */
    bool blocked; /* it makes calls that are not in the list, or uses what an attribution brings */
} Collection;

static bool collect(Node *node, Collection *c);

static void maybe_evaluated(Node *node, Collection *c)
{
    c->blocked |= lora_mentions_calls(node, c->found->statement);
}

/* The rest of a list may be left out by what the first member is. */
static void first_of(List *list, Collection *c)
{
    (void)collect(linitial(list), c);
    for (int i = 1; i < list_length(list); i++)
        maybe_evaluated(list_nth(list, i), c);
}

/* One node in several places is one call. */
static bool is_collected(FuncExpr *call, Collection *c)
{
    ListCell *cell;

    foreach (cell, c->found->calls)
        if (lfirst(cell) == call) {
            int stage = list_nth_int(c->found->stages, foreach_current_index(cell));

            c->stage = Max(c->stage, stage + 1);
            return true;
        }
    return false;
}

static void collect_call(FuncExpr *call, Collection *c)
{
    Collection inner = {c->found, c->stage, false};

    if (is_collected(call, c))
        return;
    (void)collect((Node *)call->args, &inner);
    if (inner.blocked) {
        c->blocked = true;
        return;
    }
    c->found->calls = lappend(c->found->calls, call);
    c->found->stages = lappend_int(c->found->stages, inner.stage);
    c->stage = Max(c->stage, inner.stage + 1);
}

static void collect_case(CaseExpr *expr, Collection *c)
{
    if (expr->arg)
        (void)collect((Node *)expr->arg, c);
    else
        (void)collect((Node *)((CaseWhen *)linitial(expr->args))->expr, c);
    maybe_evaluated((Node *)expr->args, c);
    maybe_evaluated((Node *)expr->defresult, c);
}

/* Members of these are all evaluated, whatever the others are. */
static bool is_evaluated_whole(Node *node)
{
    switch (nodeTag(node)) {
    case T_List:
    case T_TargetEntry:
    case T_FuncExpr:
    case T_OpExpr:
    case T_DistinctExpr:
    case T_NullIfExpr:
    case T_ScalarArrayOpExpr:
    case T_FieldSelect:
    case T_FieldStore:
    case T_RelabelType:
    case T_CoerceViaIO:
    case T_ConvertRowtypeExpr:
    case T_CollateExpr:
    case T_ArrayExpr:
    case T_RowExpr:
    case T_MinMaxExpr:
    case T_NullTest:
    case T_BooleanTest:
    case T_CoerceToDomain:
        return true;
    default:
        return false;
    }
}

static bool is_set(Node *node)
{
    return (IsA(node, FuncExpr) && ((FuncExpr *)node)->funcretset) ||
           (IsA(node, OpExpr) && ((OpExpr *)node)->opretset);
}

static bool collect_parts(Node *node, Collection *c)
{
    switch (nodeTag(node)) {
    case T_Aggref: /* their arguments are evaluated elsewhere */
    case T_WindowFunc:
    case T_GroupingFunc:
        return false;
    case T_BoolExpr:
        first_of(((BoolExpr *)node)->args, c);
        return false;
    case T_CoalesceExpr:
        first_of(((CoalesceExpr *)node)->args, c);
        return false;
    case T_CaseExpr:
        collect_case((CaseExpr *)node, c);
        return false;
    case T_ArrayCoerceExpr:
        (void)collect((Node *)((ArrayCoerceExpr *)node)->arg, c);
        maybe_evaluated((Node *)((ArrayCoerceExpr *)node)->elemexpr, c);
        return false;
    default:
        if (is_evaluated_whole(node) && !is_set(node))
            return expression_tree_walker(node, collect, c);
        maybe_evaluated(node, c);
        return false;
    }
}

static bool collect(Node *node, Collection *c)
{
    if (!node)
        return false;
    check_stack_depth();
    if (function_of(node)) {
        collect_call((FuncExpr *)node, c);
        c->blocked |= function_of(node) == LORA_COMPLETE;
        return false;
    }
    if (IsA(node, FieldSelect)) {
        FieldSelect *field = (FieldSelect *)node;

        if (function_of((Node *)field->arg) == LORA_COMPLETE &&
            field->fieldnum != LORA_COMPLETE_INFERENCE) {
            collect_call((FuncExpr *)field->arg, c);
            return false;
        }
    }
    return collect_parts(node, c);
}

bool lora_collect_calls(Node *expression, int from, LoraPlannedCalls *found)
{
    Collection c = {found, from, false};

    (void)collect(expression, &c);
    return !c.blocked;
}

int lora_stages(const LoraPlannedCalls *found)
{
    int n = 0;
    ListCell *cell;

    foreach (cell, found->stages)
        n = Max(n, lfirst_int(cell) + 1);
    return n;
}
