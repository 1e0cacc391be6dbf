/* pipeline_explain.c: what EXPLAIN shows of the node. */
#include "pipeline.h"

#include "commands/explain.h"
#if PG_VERSION_NUM >= 180000
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#endif
#include "shared.h"
#include "utils/lsyscache.h"
#include "utils/ruleutils.h"

/* Their names; whole with VERBOSE. */
static void explain_calls(CustomScanState *node, List *ancestors, ExplainState *es)
{
    CustomScan *plan = (CustomScan *)node->ss.ps.plan;
    List *context = set_deparse_context_plan(es->deparse_cxt, (Plan *)plan, ancestors);
    List *texts = NIL;
    ListCell *cell;

    foreach (cell, plan->custom_exprs) {
        FuncExpr *call = lfirst(cell);

        texts = lappend(texts, es->verbose ? deparse_expression((Node *)call, context, true, false)
                                           : get_func_name(call->funcid));
    }
    ExplainPropertyList("Calls", texts, es);
}

void lora_pipeline_steps(uint64 *steps, uint64 *sequences)
{
    lora_refresh_status();
    LWLockAcquire(lora_shared->lock, LW_SHARED);
    *steps = lora_shared->info.steps;
    *sequences = lora_shared->info.sequences;
    LWLockRelease(lora_shared->lock);
}

/* What the engine did meanwhile, for whomever. Nothing if it was started again. */
static void explain_steps(LoraPipeline *p, ExplainState *es)
{
    uint64 steps, sequences;

    lora_pipeline_steps(&steps, &sequences);
    if (steps <= p->stats.steps)
        return;
    steps -= p->stats.steps;
    ExplainPropertyInteger("Engine Steps", NULL, (int64)steps, es);
    ExplainPropertyFloat("Requests per Step", NULL,
                         (double)(sequences - p->stats.sequences) / (double)steps, 1, es);
}

void lora_pipeline_explain(CustomScanState *node, List *ancestors, ExplainState *es)
{
    LoraPipeline *p = (LoraPipeline *)node;

    explain_calls(node, ancestors, es);
    if (!es->analyze)
        return;
    ExplainPropertyInteger("Requests", NULL, p->stats.requests, es);
    ExplainPropertyInteger("Requests in Flight", NULL, p->stats.most_in_flight, es);
    ExplainPropertyInteger("Prompt Tokens", NULL, p->stats.prompt_tokens, es);
    ExplainPropertyInteger("Cached Prompt Tokens", NULL, p->stats.cached_tokens, es);
    ExplainPropertyInteger("Completion Tokens", NULL, p->stats.completion_tokens, es);
    if (p->rows)
        explain_steps(p, es);
    if (es->timing)
        ExplainPropertyFloat("Wait Time", "ms", INSTR_TIME_GET_MILLISEC(p->stats.waited), 3, es);
}
