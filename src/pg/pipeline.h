/*
 * pipeline.h: batching from plain SQL.
 *
 * After planning, a node whose target list (or filter) calls lora_generate or one of its
 * sisters is put below a CustomScan that makes these calls instead: it reads rows ahead,
 * starts their calls, and returns rows in order when theirs have ended. What it returns,
 * and writes, is what plain calls would have.
 *
 * pipeline_plan.c   the planner hook: the tree; with pipeline_above.c, pipeline_below.c and
 *                   pipeline_lateral.c, where the node is put, and pipeline_yield.c, which
 *                   makes it
 * pipeline_calls.c  which calls of an expression may be started early
 * pipeline_node.c   the node: begin, the order of things, end
 * pipeline_rows.c   rows in flight: reading, starting, retiring
 * pipeline_explain.c
 *
 * The hook also lets lora_stream in FROM return its rows as they come: stream.h.
 */
#ifndef LORA_PIPELINE_H
#define LORA_PIPELINE_H

#include "lora_pg.h"

#include "call.h"
#include "commands/explain.h"
#include "nodes/extensible.h"
#include "nodes/plannodes.h"
#include "portability/instr_time.h"
#include "utils/resowner.h"

extern void lora_pipeline_install_hooks(void);

/* -- calls (pipeline_calls.c) -------------------------------------------------------------- */

/* Which of our functions a function is, by the code it runs. */
extern LoraFunction lora_function_of(Oid function);

/* Whether an expression calls any, the plans of its subqueries included. */
extern bool lora_mentions_calls(Node *expression, PlannedStmt *statement);

/* Calls in order of evaluation. Those of stage n have calls of stages below n in their
 * arguments, and no others. */
typedef struct LoraPlannedCalls {
    PlannedStmt *statement;
    List *calls;  /* FuncExpr */
    List *stages; /* int */
} LoraPlannedCalls;

/* Adds those calls of an expression that are made whenever it is evaluated, and whose
 * arguments can be computed without any call outside this list. Stages begin at `from`.
 * False if the expression makes other calls, too, or uses what an attribution brings. */
extern bool lora_collect_calls(Node *expression, int from, LoraPlannedCalls *found);
extern int lora_stages(const LoraPlannedCalls *found);

/* -- plan ---------------------------------------------------------------------------------- */

/* The scan tuple of the node: the results of the calls, then the columns of the plan
 * below. custom_exprs are the calls (FuncExpr over the scan tuple); custom_private is
 * (stages of the calls, number of stages before the filter, limit, offset). */
typedef enum { LORA_PRIVATE_STAGES, LORA_PRIVATE_FILTER, LORA_PRIVATE_LIMIT } LoraPrivate;

extern const CustomScanMethods lora_pipeline_methods;

/* Whether the caller may execute it, as the executor looks at a function call. Raises. */
extern void lora_check_may_execute(Oid function);

/* -- node ---------------------------------------------------------------------------------- */

typedef struct LoraNodeCall {
    LoraFunction function;
    int stage;
    FmgrInfo info;
    FunctionCallInfo fcinfo;
    List *arguments; /* ExprState */
    bool subplans;   /* are run for the arguments */
    bool *stays;     /* by argument: lives as long as the row; else it is copied */
    int16 *lengths;
    bool *by_value;
} LoraNodeCall;

typedef struct LoraRow {
    MemoryContext context; /* what the row needs: its columns, calls, requests */
    Datum *values;         /* the scan tuple */
    bool *nulls;
    LoraCall *calls;
    int started;    /* stages */
    bool alone;     /* its calls were sent when no others were in flight */
    int refused_at; /* how many were, when a call of it was refused; 0: none was */
    bool ready;     /* nothing to wait for any more */
    bool filtered;
    ErrorData *thrown; /* raised when the row's turn comes */
} LoraRow;

typedef struct LoraPipelineStats {
    int64 rows, requests, prompt_tokens, cached_tokens, completion_tokens;
    int most_in_flight;
    uint64 steps, sequences; /* of the engine, when the scan began; with instrumentation */
    instr_time waited;
} LoraPipelineStats;

typedef struct LoraPipeline {
    CustomScanState css;
    MemoryContext rows_context; /* of which the rows' are children */
    LoraRow *rows;              /* a ring */
    int max_rows, first, n_rows;
    bool returned; /* the first row has been: it goes at the next call */
    int in_flight; /* calls started and not seen to end */
    int limit;     /* of in_flight, as wanted */
    int room;      /* of in_flight, as the engine and quotas allow */
    bool refusing; /* a row waits for room */
    uint64 seen_ends, seen_deaths;
    bool at_end;         /* nothing more is to be read */
    int64 n_read, bound; /* rows that will be wanted, or -1 */
    int n_calls, n_columns, n_stages, filter_stages;
    LoraNodeCall *calls;
    ExprState *limit_count, *limit_offset;
    TupleTableSlot *work; /* a row while its arguments are evaluated */
    ExprContext *arguments;
    ResourceOwner owner; /* of the plans below, and of subplans */
    LoraPipelineStats stats;
} LoraPipeline;

/* Rows (pipeline_rows.c). */
extern void lora_rows_begin(LoraPipeline *p);
/* Reads and starts rows while there is room. */
extern void lora_rows_fill(LoraPipeline *p);
/* Waits until the first row is ready. */
extern void lora_rows_settle(LoraPipeline *p);
/* The first row's values with the results of its calls; raises its error. */
extern LoraRow *lora_rows_finish(LoraPipeline *p);
extern void lora_rows_drop_first(LoraPipeline *p);
extern void lora_rows_drop_all(LoraPipeline *p);

/* The engine's steps so far, and the sum of the requests in each. */
extern void lora_pipeline_steps(uint64 *steps, uint64 *sequences);
extern void lora_pipeline_explain(CustomScanState *node, List *ancestors, struct ExplainState *es);

#endif
