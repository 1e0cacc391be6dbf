/*
 * pipeline_plan.h: the parts of the planner's side: see pipeline_plan.c.
 */
#ifndef LORA_PIPELINE_PLAN_H
#define LORA_PIPELINE_PLAN_H

#include "pipeline.h"

/* -- making the node (pipeline_yield.c) ---------------------------------------------------- */

typedef struct LoraPlacement {
    List *calls;     /* these nodes become columns 1.. */
    List *columns;   /* what the plan below yields: further columns */
    bool from_below; /* the plan below stays as it is: Vars are its columns */
} LoraPlacement;

/* A column of the node's scan tuple, of a leaf's type. */
extern Node *lora_scan_column(Node *leaf, int number);
/* Of a node in a list, from 1; 0: it is not there. */
extern int lora_position(List *list, Node *node);
/* The calls themselves, over the scan tuple. */
extern List *lora_place_calls(LoraPlacement *at);
extern CustomScan *lora_make_scan(const Plan *like, Plan *below, const LoraPlannedCalls *found,
                                  List *calls);

/* What a node is to yield, and from what. */
typedef struct LoraYield {
    Plan *like, *below;
    bool from_below; /* Vars are columns of `below`, which stays as it is */
    List *targets, *filter;
    int filter_stages;
    bool all_early; /* the filter can be evaluated before the row's turn */
    LoraPlannedCalls found;
    CustomScan *scan; /* when made */
} LoraYield;

extern LoraYield *lora_make_yield(Plan *plan, PlannedStmt *statement);
/* Finds the calls of its filter and targets. */
extern void lora_collect_node(LoraYield *y);
/* Makes the node. */
extern Plan *lora_yield(LoraYield *y);
/* Between two statements. */
extern void lora_forget_yields(void);

/* -- merging (pipeline_yield.c) ------------------------------------------------------------ */

/* What the node `below` yields, if one over it, with this filter, can be merged with it. */
extern LoraYield *lora_mergeable(const Plan *below, List *filter);
/* Its calls come first; what they are filtered by filters all. */
extern void lora_begin_with(LoraYield *y, const LoraYield *inner);

typedef struct LoraColumns {
    int varno;
    List *targets;
} LoraColumns;

/* Expressions over the lower node's targets become expressions over what it is made from.
 * Its calls stay the nodes they are. */
extern Node *lora_through(Node *node, LoraColumns *columns);
/* Whether there are Vars of the relation that are no columns: whole rows, system columns. */
extern bool lora_has_odd_columns(Node *node, int *varno);

/* -- where it is put ----------------------------------------------------------------------- */

/* Above a node whose targets or filter call (pipeline_above.c). */
extern Plan *lora_put_above(Plan *plan, PlannedStmt *statement);
/* Below a node with calls in the arguments of its aggregates or sets (pipeline_below.c). */
extern void lora_put_below(Plan *plan, PlannedStmt *statement);

/* FROM t, LATERAL lora_complete(.., t.body) AS c: one row for each of t's. */
typedef struct LoraLateral {
    NestLoop *join;
    FunctionScan *scan;
    FuncExpr *call;     /* over the outer side */
    LoraColumns *outer; /* what the outer side's columns are, when it is one of our nodes */
} LoraLateral;

/* Instead of such a join (pipeline_lateral.c). */
extern bool lora_is_lateral_call(Plan *plan, LoraLateral *l);
extern Plan *lora_put_for_join(Plan *plan, LoraLateral *l, PlannedStmt *statement);

#endif
