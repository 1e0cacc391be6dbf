/* logits.c: the logits of a whole text, for the command line and tests: beside requests and their
 * scheduler, in an engine that is idle. */
#include "engine/engine_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct whole {
    ol_engine *engine;
    const ol_whole_text *text;
    ol_adapter *adapters[OL_MAX_REQUEST_ADAPTERS]; /* pinned */
    ol_lora_ref loras[OL_MAX_REQUEST_ADAPTERS];
    int n_loras;
    ol_pagetable table;
    float *out;
} whole;

/* In a pool they would give way to the text's own pages. */
static ol_code whole_pin(whole *w, const ol_adapter_use *use, ol_error *err)
{
    ol_adapter *a = ol_adapters_ref(w->engine->adapters, &use->digest);

    if (!a)
        return ol_fail_nomem(err, sizeof(*a), "an adapter");
    ol_adapters_pin(w->engine->adapters, a);
    w->adapters[w->n_loras] = a;
    w->loras[w->n_loras++] = (ol_lora_ref){a->lora, use->weight};
    return OL_OK;
}

static ol_code whole_adapters(whole *w, ol_error *err)
{
    const ol_adapter_use *uses = w->text->adapters;
    int n = w->text->n_adapters;

    if (n < 0 || n > OL_MAX_REQUEST_ADAPTERS)
        return ol_fail(err, OL_LIMIT, "at most %d adapters can be combined",
                       OL_MAX_REQUEST_ADAPTERS);
    for (int i = 0; i < n; i++) {
        if (!ol_adapters_find(w->engine->adapters, &uses[i].digest))
            return ol_fail(err, OL_NOT_FOUND, "adapter %d is not in the engine", i + 1);
        OL_TRY(whole_pin(w, &uses[i], err));
    }
    return OL_OK;
}

static ol_code whole_check(const whole *w, ol_error *err)
{
    const ol_engine *engine = w->engine;
    const ol_whole_text *t = w->text;

    if (engine->n_live > 0)
        return ol_fail(err, OL_INVALID, "the engine is not idle");
    if (t->n < 1 || t->n > engine->limits.context)
        return ol_fail(err, OL_LIMIT, "%d tokens; the context holds 1 to %d", t->n,
                       engine->limits.context);
    for (int i = 0; i < t->n; i++)
        if (t->tokens[i] < 0 || t->tokens[i] >= engine->config->vocab)
            return ol_fail(err, OL_INVALID, "token %d is not in the model's vocabulary",
                           t->tokens[i]);
    return OL_OK;
}

static ol_code whole_pages(whole *w, ol_error *err)
{
    ol_kvpages *pages = ol_sched_pages(w->engine->sched);

    w->table.max = ol_kvpages_for(pages, w->text->n);
    w->table.pages = calloc((size_t)w->table.max, sizeof(int32_t));
    if (!w->table.pages)
        return ol_fail_nomem(err, (size_t)w->text->n, "a page table");
    if (ol_pagetable_grow(&w->table, pages, w->text->n))
        return OL_OK;
    return ol_fail(err, OL_LIMIT, "the cache has no room for %d tokens beside %d adapters",
                   w->text->n, w->n_loras);
}

static void whole_end(whole *w)
{
    ol_pagetable_clear(&w->table, ol_sched_pages(w->engine->sched));
    free(w->table.pages);
    for (int i = 0; i < w->n_loras; i++) {
        ol_adapters_unpin(w->engine->adapters, w->adapters[i]);
        ol_adapters_unref(w->engine->adapters, w->adapters[i]);
    }
}

static ol_code whole_chunk(whole *w, int first, int n, ol_error *err)
{
    ol_engine *engine = w->engine;
    ol_step_seq seq = {.n_rows = n,
                       .first_pos = first,
                       .pages = w->table.pages,
                       .n_loras = w->n_loras,
                       .loras = w->loras};
    ol_step step = {.n_rows = n,
                    .tokens = w->text->tokens + first,
                    .n_seqs = 1,
                    .seqs = &seq,
                    .n_logit_rows = n,
                    .logit_rows = engine->step_logits};
    size_t vocab = (size_t)engine->config->vocab;
    ol_model_output output;

    for (int i = 0; i < n; i++)
        engine->step_logits[i] = i;
    OL_TRY(ol_model_forward(engine->model, &step, engine->kv, &output, err));
    memcpy(w->out + (size_t)first * vocab, output.logits, (size_t)n * vocab * sizeof(float));
    return OL_OK;
}

static ol_code whole_run(whole *w, ol_error *err)
{
    int most = w->engine->limits.max_logit_rows;

    for (int at = 0; at < w->text->n; at += most)
        OL_TRY(whole_chunk(w, at, w->text->n - at < most ? w->text->n - at : most, err));
    return OL_OK;
}

ol_code ol_engine_logits(ol_engine *engine, const ol_whole_text *text, float *out, ol_error *err)
{
    whole w = {.engine = engine, .text = text, .out = out};
    ol_code code;

    OL_TRY(whole_check(&w, err));
    code = whole_adapters(&w, err);
    if (code == OL_OK)
        code = whole_pages(&w, err);
    if (code == OL_OK)
        code = whole_run(&w, err);
    whole_end(&w);
    return code;
}
