/* engine.c: facts about an engine, and its tokenizer. */
#include "engine/engine_internal.h"

#include <stdio.h>
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
    info->adapter_copies = a.copies;
    info->adapter_copy_bytes = a.copy_bytes;
    info->adapter_copy_loads = a.copy_loads;
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
    size_t at;

    memset(info, 0, sizeof(*info));
    tell_model(engine, info);
    tell_state(engine, info);
    engine->table->info(engine->device, &info->device);
    at = strlen(info->device.description);
    snprintf(info->device.description + at, sizeof(info->device.description) - at, "%s",
             engine->storage);
}

bool ol_engine_poll(ol_engine *engine, ol_event *event)
{
    return ol_events_poll(engine->events, event);
}

/* -- tokens -------------------------------------------------------------------------------- */

static ol_code need_tokenizer(const ol_engine *engine, ol_error *err)
{
    return engine->tok ? OL_OK : ol_fail(err, OL_UNSUPPORTED, "the model has no tokenizer");
}

ol_code ol_engine_tokenize(ol_engine *engine, ol_text text, bool add_bos, bool parse_special,
                           ol_tokens *tokens, ol_error *err)
{
    unsigned flags = parse_special ? OL_TOK_PARSE_SPECIAL : 0;
    ol_ids out = {0};

    OL_TRY(need_tokenizer(engine, err));
    if (add_bos && ol_tokenizer_adds_bos(engine->tok))
        flags |= OL_TOK_ADD_BOS;
    OL_TRY(ol_tokenize(engine->tok, text.data, text.len, flags, &out, err));
    *tokens = (ol_tokens){out.ids, out.n};
    return OL_OK;
}

ol_code ol_engine_detokenize(ol_engine *engine, const ol_tokens *tokens, bool skip_special,
                             char **text, size_t *len, ol_error *err)
{
    ol_buf out = {0};

    OL_TRY(need_tokenizer(engine, err));
    if (ol_detokenize(engine->tok, tokens->ids, tokens->n, skip_special ? OL_DETOK_SKIP_SPECIAL : 0,
                      &out, err) != OL_OK) {
        ol_buf_free(&out);
        return err->code;
    }
    ol_buf_put_u8(&out, 0);
    if (out.failed) {
        ol_buf_free(&out);
        return ol_fail_nomem(err, out.len, "text");
    }
    *text = (char *)out.data;
    *len = out.len - 1;
    return OL_OK;
}
