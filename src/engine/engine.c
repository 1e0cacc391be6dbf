/* engine.c: what engine.h offers beside requests and steps: facts, adapters, tokens, and the
 * logits of a whole text. */
#include "engine/engine_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- facts ----------------------------------------------------------------------------- */

/* A name from a file, cut at a character. */
static void copy_name(char *out, size_t size, const char *name)
{
    size_t len = strlen(name);

    if (len >= size)
        len = size - 1;
    while (len > 0 && ((unsigned char)name[len] & 0xC0) == 0x80)
        len--;
    memcpy(out, name, len);
    out[len] = '\0';
}

static void tell_model(const ol_engine *engine, ol_engine_info *info)
{
    const ol_model_config *c = engine->config;

    copy_name(info->model_name, sizeof(info->model_name), ol_model_source_name(engine->source));
    copy_name(info->architecture, sizeof(info->architecture), ol_family_name(c->family));
    copy_name(info->format, sizeof(info->format), ol_model_source_format(engine->source));
    info->model_digest = engine->digest;
    info->parameters = ol_model_source_parameters(engine->source);
    info->vocab = c->vocab;
    info->hidden = c->hidden;
    info->layers = c->n_layers;
    info->context = engine->limits.context;
    info->has_tokenizer = engine->tok != NULL;
}

static void tell_state(const ol_engine *engine, ol_engine_info *info)
{
    ol_adapters_counts a = ol_adapters_count(engine->adapters);
    const counters *c = &engine->counters;

    info->kv_pages = engine->limits.n_pages;
    info->kv_pages_free = ol_kvpages_available(ol_sched_pages(engine->sched));
    info->kv_pages_idle = ol_kvpages_idle(ol_sched_pages(engine->sched));
    info->page_tokens = engine->limits.page_tokens;
    info->running = ol_sched_running(engine->sched);
    info->waiting = ol_sched_waiting(engine->sched) + engine->n_pending;
    info->adapters = a.resident;
    info->adapter_bytes = a.bytes;
    info->adapter_loads = a.loads;
    info->adapter_hits = a.hits;
    info->adapter_evictions = a.evictions;
    info->steps = c->steps;
    info->prompt_tokens = c->prompt_tokens;
    info->generated_tokens = c->generated_tokens;
    info->requests = c->requests;
    info->failed = c->failed;
    info->cancelled = c->cancelled;
    info->cached_tokens = c->cached_tokens;
    info->rows = c->rows;
    info->sequences = c->sequences;
    info->busy_us = c->busy_us;
    info->rejected = c->rejected;
    info->preemptions = ol_sched_preemptions(engine->sched);
}

void ol_engine_info_get(ol_engine *engine, ol_engine_info *info)
{
    memset(info, 0, sizeof(*info));
    tell_model(engine, info);
    tell_state(engine, info);
    engine->table->info(engine->device, &info->device);
}

bool ol_engine_poll(ol_engine *engine, ol_event *event)
{
    return ol_events_poll(engine->events, event);
}

/* -- adapters ---------------------------------------------------------------------------- */

ol_code ol_engine_adapter_put(ol_engine *engine, const ol_digest *expected, const void *weights,
                              size_t weights_len, const char *config, size_t config_len,
                              ol_adapter_facts *facts, ol_error *err)
{
    ol_adapter_bytes bytes = {weights, weights_len, config, config_len};
    ol_adapter_verdict verdict;
    ol_code code = ol_adapters_put(engine->adapters, expected, &bytes, &verdict, err);

    *facts = verdict.facts;
    engine->blocked = false;
    if (!verdict.ours)
        return code;
    admission_arrived(engine, expected);
    if (code != OL_OK)
        admission_refuse(engine, expected, err);
    admission_run(engine);
    return code;
}

ol_code ol_engine_adapter_check(ol_engine *engine, const void *weights, size_t weights_len,
                                const char *config, size_t config_len, ol_adapter_facts *facts,
                                ol_error *err)
{
    ol_adapter_bytes bytes = {weights, weights_len, config, config_len};

    return ol_adapters_check(engine->adapters, &bytes, facts, err);
}

bool ol_engine_adapter_has(ol_engine *engine, const ol_digest *digest)
{
    return ol_adapters_find(engine->adapters, digest) != NULL;
}

/* -- tokens -------------------------------------------------------------------------------- */

static ol_code need_tokenizer(const ol_engine *engine, ol_error *err)
{
    return engine->tok ? OL_OK : ol_fail(err, OL_UNSUPPORTED, "the model has no tokenizer");
}

ol_code ol_engine_tokenize(ol_engine *engine, const char *text, size_t len, bool add_bos,
                           bool parse_special, int32_t **ids, size_t *n_ids, ol_error *err)
{
    unsigned flags = parse_special ? OL_TOK_PARSE_SPECIAL : 0;
    ol_ids out = {0};

    OL_TRY(need_tokenizer(engine, err));
    if (add_bos && ol_tokenizer_adds_bos(engine->tok))
        flags |= OL_TOK_ADD_BOS;
    OL_TRY(ol_tokenize(engine->tok, text, len, flags, &out, err));
    *ids = out.ids;
    *n_ids = out.n;
    return OL_OK;
}

ol_code ol_engine_detokenize(ol_engine *engine, const int32_t *ids, size_t n_ids, bool skip_special,
                             char **text, size_t *len, ol_error *err)
{
    ol_buf out = {0};

    OL_TRY(need_tokenizer(engine, err));
    if (ol_detokenize(engine->tok, ids, n_ids, skip_special ? OL_DETOK_SKIP_SPECIAL : 0, &out,
                      err) != OL_OK) {
        ol_buf_free(&out);
        return err->code;
    }
    ol_buf_put_u8(&out, 0);
    if (out.failed) {
        ol_buf_free(&out);
        return ol_fail_nomem(err, n_ids, "text");
    }
    *text = (char *)out.data;
    *len = out.len - 1;
    return OL_OK;
}

/* -- the logits of a whole text ---------------------------------------------------------------- */

typedef struct whole {
    ol_engine *engine;
    const int32_t *tokens;
    int n;
    ol_lora_ref loras[OL_MAX_REQUEST_ADAPTERS];
    int n_loras;
    ol_pagetable table;
    float *out;
} whole;

static ol_code whole_adapters(whole *w, const ol_adapter_use *uses, int n, ol_error *err)
{
    if (n < 0 || n > OL_MAX_REQUEST_ADAPTERS)
        return ol_fail(err, OL_LIMIT, "at most %d adapters can be combined",
                       OL_MAX_REQUEST_ADAPTERS);
    for (int i = 0; i < n; i++) {
        const ol_adapter *a = ol_adapters_find(w->engine->adapters, &uses[i].digest);

        if (!a)
            return ol_fail(err, OL_NOT_FOUND, "adapter %d is not in the engine", i + 1);
        w->loras[w->n_loras++] = (ol_lora_ref){a->lora, uses[i].weight};
    }
    return OL_OK;
}

static ol_code whole_check(const whole *w, ol_error *err)
{
    const ol_engine *engine = w->engine;

    if (engine->n_live > 0)
        return ol_fail(err, OL_INVALID, "the engine is not idle");
    if (w->n < 1 || w->n > engine->limits.context)
        return ol_fail(err, OL_LIMIT, "%d tokens; the context holds 1 to %d", w->n,
                       engine->limits.context);
    for (int i = 0; i < w->n; i++)
        if (w->tokens[i] < 0 || w->tokens[i] >= engine->config->vocab)
            return ol_fail(err, OL_INVALID, "token %d is not in the model's vocabulary",
                           w->tokens[i]);
    return OL_OK;
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
                    .tokens = w->tokens + first,
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

    for (int at = 0; at < w->n; at += most)
        OL_TRY(whole_chunk(w, at, w->n - at < most ? w->n - at : most, err));
    return OL_OK;
}

ol_code ol_engine_logits(ol_engine *engine, const int32_t *tokens, int n,
                         const ol_adapter_use *adapters, int n_adapters, float *out, ol_error *err)
{
    whole w = {.engine = engine, .tokens = tokens, .n = n, .out = out};
    ol_kvpages *pages = ol_sched_pages(engine->sched);
    ol_code code;

    OL_TRY(whole_check(&w, err));
    OL_TRY(whole_adapters(&w, adapters, n_adapters, err));
    w.table.max = ol_kvpages_for(pages, n);
    w.table.pages = calloc((size_t)w.table.max, sizeof(int32_t));
    if (!w.table.pages)
        return ol_fail_nomem(err, (size_t)n, "a page table");
    ol_pagetable_grow(&w.table, pages, n);
    code = whole_run(&w, err);
    ol_pagetable_clear(&w.table, pages);
    free(w.table.pages);
    return code;
}
