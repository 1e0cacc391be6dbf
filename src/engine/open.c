/* open.c: an engine's beginning and end. */
#include "engine/load.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>

#define DEFAULT_ADAPTER_BYTES ((size_t)1 << 30)
#define DEFAULT_COPY_BYTES ((size_t)4 << 30)
#define PATIENCE_US 2000000
#define DEFAULT_STEP_MS 200

/* -- options ---------------------------------------------------------------------------- */

static ol_code check_number(const char *name, int value, int least, int most, ol_error *err)
{
    if (value >= least && value <= most)
        return OL_OK;
    ol_fail(err, OL_INVALID, "%s cannot be %d", name, value);
    return ol_detail(err, "It must lie between %d and %d.", least, most);
}

static int or_default(int value, int otherwise)
{
    return value ? value : otherwise;
}

/* Whoever generates takes a row of each step. An eighth is left for prompts, or a tenant with
 * nothing running would find a slot, and wait all the same until somebody has ended. */
static void leave_rows_for_prompts(limits *l)
{
    int most = l->step_tokens - (l->step_tokens + 7) / 8;

    if (most < 1)
        most = 1;
    if (l->max_seqs <= most)
        return;
    ol_log(OL_LOG_INFO, "%d sequences run at the same time, not %d: a step has %d tokens", most,
           l->max_seqs, l->step_tokens);
    l->max_seqs = most;
}

/* All limits but those that depend on the model. */
static ol_code take_limits(const ol_engine_options *o, limits *l, ol_error *err)
{
    OL_TRY(check_number("threads", o->threads, 0, 1024, err));
    OL_TRY(check_number("context", o->context, 0, OL_MAX_CONTEXT, err));
    OL_TRY(check_number("max_seqs", o->max_seqs, 0, 4096, err));
    OL_TRY(check_number("step_tokens", o->step_tokens, 0, 65536, err));
    OL_TRY(check_number("page_tokens", o->page_tokens, 0, 256, err));
    OL_TRY(check_number("max_queued", o->max_queued, 0, 1 << 20, err));
    OL_TRY(check_number("step_ms", o->step_ms, 0, 3600 * 1000, err));
    OL_TRY(check_number("quantization", (int)o->quantization, OL_QUANT_AS_IS, OL_QUANT_FP8, err));
    OL_TRY(check_number("adapters", (int)o->adapters, OL_QUANT_AS_IS, OL_QUANT_INT8, err));
    OL_TRY(check_number("kv_dtype", o->kv_dtype, -1, OL_F8E4M3, err));
    l->max_seqs = or_default(o->max_seqs, 64);
    l->step_tokens = or_default(o->step_tokens, 512);
    l->page_tokens = or_default(o->page_tokens, 16);
    l->max_queued = or_default(o->max_queued, 1000);
    if (l->page_tokens < 16 || (l->page_tokens & (l->page_tokens - 1)) != 0)
        return ol_fail(err, OL_INVALID, "page_tokens must be a power of two of at least 16");
    leave_rows_for_prompts(l);
    /* A sequence that generates wants one row of logits; one that scores can use more. */
    l->max_logit_rows = l->max_seqs > 32 ? l->max_seqs : 32;
    if (l->max_logit_rows > l->step_tokens)
        l->max_logit_rows = l->step_tokens;
    return OL_OK;
}

/* With what an answer was computed, as it is recorded, includes how things were stored. */
static void note_storage(ol_engine *engine, const ol_engine_options *o)
{
    static const char *const weights[] = {[OL_QUANT_AS_IS] = "",
                                          [OL_QUANT_INT8] = ", int8 weights",
                                          [OL_QUANT_INT4] = ", int4 weights",
                                          [OL_QUANT_FP8] = ", fp8 weights"};
    static const char *const pages[] = {[OL_F32] = ", f32 keys and values",
                                        [OL_F16] = ", f16 keys and values",
                                        [OL_BF16] = ", bf16 keys and values",
                                        [OL_F8E4M3] = ", fp8 keys and values"};

    snprintf(engine->storage, sizeof(engine->storage), "%s%s%s", weights[o->quantization],
             o->kv_dtype >= 0 && pages[o->kv_dtype] ? pages[o->kv_dtype] : "",
             o->adapters == OL_QUANT_INT8 ? ", int8 adapters" : "");
}

/* -- what requests and steps work with ------------------------------------------------------ */

static void adapters_in_pool(const ol_engine *engine, const ol_engine_options *o,
                             ol_adapters_options *adapters)
{
    size_t all = (size_t)engine->limits.pool_pages * engine->page_bytes;

    adapters->pool = ol_sched_pages(engine->sched);
    adapters->kv = engine->kv;
    adapters->page_bytes = engine->page_bytes;
    adapters->budget = o->adapter_bytes && o->adapter_bytes < all ? o->adapter_bytes : all;
}

/* Where the device computes in the host's memory, copies would be the same again. */
static size_t copy_budget(const ol_engine *engine, const ol_engine_options *o)
{
    ol_device_info info;

    if (o->copy_bytes)
        return o->copy_bytes == OL_NO_COPIES ? 0 : o->copy_bytes;
    engine->table->info(engine->device, &info);
    return info.own_memory ? DEFAULT_COPY_BYTES : 0;
}

static ol_code open_tables(ol_engine *engine, const ol_engine_options *o, ol_error *err)
{
    const limits *l = &engine->limits;
    ol_adapters_options adapters = {.table = engine->table,
                                    .device = engine->device,
                                    .base = engine->config,
                                    .budget =
                                        o->adapter_bytes ? o->adapter_bytes : DEFAULT_ADAPTER_BYTES,
                                    .copy_budget = copy_budget(engine, o)};
    size_t buckets = 64;

    if (engine->page_bytes)
        adapters_in_pool(engine, o, &adapters);
    while (buckets < (size_t)(l->max_queued + l->max_seqs))
        buckets *= 2;
    engine->tags_mask = buckets - 1;
    engine->tags = calloc(buckets, sizeof(request *));
    engine->step_tokens = calloc((size_t)l->step_tokens, sizeof(int32_t));
    engine->step_seqs = calloc((size_t)l->max_seqs, sizeof(ol_step_seq));
    engine->step_logits = calloc((size_t)l->max_logit_rows, sizeof(int32_t));
    engine->step_picks = calloc((size_t)l->max_logit_rows, sizeof(ol_pick));
    engine->step_choices = calloc((size_t)l->max_logit_rows, sizeof(ol_choice));
    engine->step_energy =
        calloc((size_t)l->step_tokens * OL_MAX_REQUEST_ADAPTERS, sizeof(*engine->step_energy));
    if (!engine->tags || !engine->step_tokens || !engine->step_seqs || !engine->step_logits ||
        !engine->step_picks || !engine->step_choices || !engine->step_energy)
        return ol_fail_nomem(err, buckets * sizeof(request *), "the engine");
    OL_TRY(ol_adapters_create(&adapters, &engine->adapters, err));
    OL_TRY(ol_loader_create(&engine->loader, err));
    OL_TRY(ol_events_create(&engine->events, err));
    engine->device_chooses = engine->table->choose && !o->host_sampling;
    return ol_chooser_create(engine->config->vocab, &engine->chooser, err);
}

static ol_code open_all(ol_engine *engine, const ol_engine_options *o, ol_error *err)
{
    if (!o->model_path)
        return ol_fail(err, OL_INVALID, "no model is named");
    engine->patience_us = PATIENCE_US;
    engine->step_us = (uint64_t)or_default(o->step_ms, DEFAULT_STEP_MS) * 1000;
    OL_TRY(take_limits(o, &engine->limits, err));
    note_storage(engine, o);
    OL_TRY(ol_model_source_open(o->model_path, &engine->source, err));
    engine->config = ol_model_source_config(engine->source);
    OL_TRY(open_device(engine, o, err));
    OL_TRY(open_model(engine, o, err));
    OL_TRY(open_kv(engine, o, err));
    OL_TRY(open_tables(engine, o, err));
    return warm_up(engine, err);
}

ol_code ol_engine_open(const ol_engine_options *options, ol_engine **out, ol_error *err)
{
    ol_engine *engine = calloc(1, sizeof(*engine));

    if (!engine)
        return ol_fail_nomem(err, sizeof(*engine), "the engine");
    if (open_all(engine, options, err) != OL_OK) {
        ol_engine_close(engine);
        return err->code;
    }
    *out = engine;
    return OL_OK;
}

static void end_requests(ol_engine *engine)
{
    for (size_t i = 0; engine->tags && i <= engine->tags_mask; i++)
        while (engine->tags[i])
            request_free(engine, engine->tags[i]);
}

void ol_engine_close(ol_engine *engine)
{
    if (!engine)
        return;
    end_requests(engine);
    ol_loader_free(engine->loader, load_drop, engine);
    ol_adapters_free(engine->adapters);
    ol_prefix_free(engine->prefix);
    ol_sched_free(engine->sched);
    if (engine->kv)
        engine->table->kv_free(engine->device, engine->kv);
    ol_model_free(engine->model);
    if (engine->device)
        engine->table->close(engine->device);
    ol_tokenizer_free(engine->tok);
    ol_model_source_close(engine->source); /* last: the device may use its bytes */
    ol_events_free(engine->events);
    ol_chooser_free(engine->chooser);
    ol_buf_free(&engine->piece);
    ol_buf_free(&engine->released);
    free(engine->eos);
    free(engine->tags);
    free(engine->step_tokens);
    free(engine->step_seqs);
    free(engine->step_logits);
    free(engine->step_picks);
    free(engine->step_choices);
    free(engine->step_energy);
    free(engine);
}
