/* open_kv.c: pages for keys and values: of what type, how many, and who gives them out. */
#include "engine/engine_internal.h"

#include "base/log.h"

#include <stdio.h>

#define DEFAULT_KV_BYTES ((size_t)512 << 20)

static ol_code refuse_kv_dtype(const ol_device_info *info, ol_dtype dtype, ol_error *err)
{
    char types[64] = "";
    size_t at = 0;

    ol_fail(err, OL_UNSUPPORTED, "device \"%s\" cannot keep keys and values as %s", info->name,
            ol_dtype_name(dtype));
    for (int i = 0; i < OL_DTYPE_COUNT && at < sizeof(types); i++)
        if (info->kv_dtypes & 1u << i)
            at += (size_t)snprintf(types + at, sizeof(types) - at, "%s%s", at ? ", " : "",
                                   ol_dtype_name((ol_dtype)i));
    ol_detail(err, "It can as: %s.", types);
    return ol_hint(err, "Choose one of these, or auto (openlora.kv_cache_dtype, --kv-dtype).");
}

/* Half precision unless the model itself is computed in full, as far as the device has them. */
static ol_code choose_kv_dtype(const ol_engine *engine, const ol_engine_options *o, ol_dtype *dtype,
                               ol_error *err)
{
    ol_device_info info;
    ol_tensor q;
    bool full;

    engine->table->info(engine->device, &info);
    if (o->kv_dtype >= 0) {
        *dtype = (ol_dtype)o->kv_dtype;
        return info.kv_dtypes & 1u << *dtype ? OL_OK : refuse_kv_dtype(&info, *dtype, err);
    }
    OL_TRY(ol_model_source_tensor(engine->source, OL_ROLE_LINEAR + OL_MOD_Q, 0, &q, err));
    full = q.dtype == OL_F32 && o->quantization == OL_QUANT_AS_IS;
    *dtype = full && (info.kv_dtypes & 1u << OL_F32) ? OL_F32
             : info.kv_dtypes & 1u << OL_F16         ? OL_F16
                                                     : OL_BF16;
    return OL_OK;
}

/* Of a key or value of one head: FP8 has an exponent besides. */
static size_t kv_row_bytes(const ol_kv_desc *desc)
{
    return (size_t)desc->head_dim * ol_dtype_block_bytes(desc->dtype) +
           (desc->dtype == OL_F8E4M3 ? 1 : 0);
}

/* Bytes of a page, as the device says, or by what is known of it. */
static size_t page_bytes_of(const ol_engine *engine, const ol_kv_desc *desc)
{
    size_t bytes =
        engine->table->kv_page_bytes ? engine->table->kv_page_bytes(engine->device, desc) : 0;

    return bytes ? bytes
                 : (size_t)2 * (size_t)desc->n_layers * (size_t)desc->n_kv_heads *
                       (size_t)desc->page_tokens * kv_row_bytes(desc);
}

/* One pool for pages and adapters has more pages than sequences could fill. */
static ol_code size_pool(ol_engine *engine, const ol_engine_options *o, size_t page, ol_error *err)
{
    limits *l = &engine->limits;
    size_t pages = o->cache_bytes / page;

    if (!engine->table->lora_create_in || !engine->table->lora_need)
        return ol_fail(err, OL_UNSUPPORTED,
                       "the device has no common pool for keys, values and adapters");
    if (pages > INT32_MAX)
        pages = INT32_MAX;
    engine->page_bytes = page;
    l->pool_pages = (int)pages;
    return OL_OK;
}

/* Pages within the budget, but no more than all sequences could ever fill. */
static ol_code size_kv(ol_engine *engine, const ol_engine_options *o, ol_kv_desc *desc,
                       ol_error *err)
{
    limits *l = &engine->limits;
    size_t budget = o->kv_bytes ? o->kv_bytes : o->cache_bytes ? o->cache_bytes : DEFAULT_KV_BYTES;
    size_t page = page_bytes_of(engine, desc);
    size_t pages, per_seq;

    if (o->cache_bytes && budget > o->cache_bytes)
        budget = o->cache_bytes;
    pages = budget / page;

    l->context = engine->config->max_position;
    if (o->context && o->context < l->context)
        l->context = o->context;
    per_seq = ((size_t)l->context + (size_t)l->page_tokens - 1) / (size_t)l->page_tokens;
    if (pages > per_seq * (size_t)l->max_seqs)
        pages = per_seq * (size_t)l->max_seqs;
    if (pages > INT32_MAX)
        pages = INT32_MAX;
    if (pages == 0) {
        ol_fail(err, OL_LIMIT, "the KV cache's budget is too small");
        return ol_detail(err, "It is %zu bytes; a page of %d tokens takes %zu.", budget,
                         l->page_tokens, page);
    }
    l->context_by_kv = pages < per_seq;
    if (l->context_by_kv)
        l->context = (int)pages * l->page_tokens;
    l->n_pages = desc->n_pages = (int)pages;
    l->kv_bytes = budget;
    if (!o->cache_bytes)
        return OL_OK;
    OL_TRY(size_pool(engine, o, page, err));
    desc->n_pages = l->pool_pages;
    desc->pool = true;
    return OL_OK;
}

ol_code open_kv(ol_engine *engine, const ol_engine_options *o, ol_error *err)
{
    limits *l = &engine->limits;
    ol_kv_desc desc = {.n_layers = engine->config->n_layers,
                       .n_kv_heads = engine->config->n_kv_heads,
                       .head_dim = engine->config->head_dim,
                       .page_tokens = l->page_tokens};
    ol_sched_limits sched = {.max_seqs = l->max_seqs,
                             .step_tokens = l->step_tokens,
                             .max_logit_rows = l->max_logit_rows,
                             .page_tokens = l->page_tokens};

    OL_TRY(choose_kv_dtype(engine, o, &desc.dtype, err));
    OL_TRY(size_kv(engine, o, &desc, err));
    if (l->context_by_kv)
        ol_log(OL_LOG_INFO, "the KV cache holds %d tokens, fewer than the model's context of %d",
               l->context, engine->config->max_position);
    sched.n_pages = desc.n_pages;
    sched.max_tokens = l->context;
    if (!o->no_prefix_cache) {
        sched.find = step_find_computed;
        sched.find_context = engine;
    }
    OL_TRY(ol_sched_create(&sched, &engine->sched, err));
    ol_kvpages_limit(ol_sched_pages(engine->sched), l->n_pages);
    if (!o->no_prefix_cache)
        OL_TRY(ol_prefix_create(ol_sched_pages(engine->sched), &engine->prefix, err));
    return engine->table->kv_create(engine->device, &desc, &engine->kv, err);
}
