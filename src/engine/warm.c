/* warm.c: steps of nobody, before the first request, on a device that has memory of its own. It so
 * takes what steps work with, brings its kernels there and shows that they run: what does not fit
 * or does not work is a fault of loading, told as such, and no request pays for it. */
#include "engine/engine_internal.h"

#include <math.h>

#define PROMPT_ROWS 9 /* more than any device takes for a few */

static ol_code warm_step(ol_engine *engine, int first_pos, int n_rows, ol_error *err)
{
    static const int32_t page, tokens[PROMPT_ROWS]; /* the first of either: nobody has it yet */
    int32_t last = n_rows - 1;
    ol_pick pick = {.given = -1, .top_p = 1, .floor = -INFINITY, .repetition = 1, .logprobs = -1};
    ol_step_seq seq = {.n_rows = n_rows, .first_pos = first_pos, .pages = &page};
    ol_step step = {.n_rows = n_rows,
                    .tokens = tokens,
                    .n_seqs = 1,
                    .seqs = &seq,
                    .n_logit_rows = 1,
                    .logit_rows = &last,
                    .picks = engine->device_chooses ? &pick : NULL};
    ol_model_output ignored;

    return ol_model_forward(engine->model, &step, engine->kv, &ignored, err);
}

ol_code warm_up(ol_engine *engine, ol_error *err)
{
    const limits *l = &engine->limits;
    int rows = l->step_tokens < PROMPT_ROWS ? l->step_tokens : PROMPT_ROWS;
    ol_device_info info;

    engine->table->info(engine->device, &info);
    if (!info.own_memory || l->context <= rows)
        return OL_OK;
    OL_TRY(warm_step(engine, 0, rows, err));
    OL_TRY(warm_step(engine, rows, 1, err));
    return warm_step(engine, rows, 1, err); /* as it was recorded */
}
