/* open.c: an engine's beginning and end. */
#include "engine/engine_internal.h"

#include "engine/vocab.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_KV_BYTES ((size_t)512 << 20)
#define DEFAULT_ADAPTER_BYTES ((size_t)1 << 30)
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
    OL_TRY(check_number("kv_dtype", o->kv_dtype, -1, OL_F8E4M3, err));
    l->max_seqs = or_default(o->max_seqs, 64);
    l->step_tokens = or_default(o->step_tokens, 512);
    l->page_tokens = or_default(o->page_tokens, 16);
    l->max_queued = or_default(o->max_queued, 1000);
    if (l->page_tokens < 16 || (l->page_tokens & (l->page_tokens - 1)) != 0)
        return ol_fail(err, OL_INVALID, "page_tokens must be a power of two of at least 16");
    /* A sequence that generates wants one row of logits; one that scores can use more. */
    l->max_logit_rows = l->max_seqs > 32 ? l->max_seqs : 32;
    if (l->max_logit_rows > l->step_tokens)
        l->max_logit_rows = l->step_tokens;
    return OL_OK;
}

/* -- the device --------------------------------------------------------------------------- */

/* The folder of the running executable: where devices are installed. */
static ol_code own_folder(char *out, size_t size, ol_error *err)
{
    ssize_t n = readlink("/proc/self/exe", out, size - 1);
    char *slash;

    if (n < 0)
        return ol_fail_errno(err, "could not read", "/proc/self/exe");
    out[n] = '\0';
    slash = strrchr(out, '/');
    if (slash)
        *slash = '\0';
    return OL_OK;
}

static ol_code load_device(ol_engine *engine, const ol_engine_options *o, const char *name,
                           ol_error *err)
{
    char folder[4096];

    if (o->device_dir)
        snprintf(folder, sizeof(folder), "%s", o->device_dir);
    else
        OL_TRY(own_folder(folder, sizeof(folder), err));
    return ol_device_load(folder, name, &engine->table, err);
}

static ol_code open_loaded(ol_engine *engine, const ol_engine_options *o, int index, ol_error *err)
{
    ol_device_options how = {.threads = o->threads,
                             .device_index = index,
                             .memory_limit = o->memory_limit,
                             .isa = o->isa,
                             .max_rows = engine->limits.step_tokens,
                             .max_seqs = engine->limits.max_seqs,
                             .max_logit_rows = engine->limits.max_logit_rows};

    return engine->table->open(&how, &engine->device, err);
}

static ol_code open_named(ol_engine *engine, const ol_engine_options *o, const char *name,
                          int index, ol_error *err)
{
    OL_TRY(load_device(engine, o, name, err));
    return open_loaded(engine, o, index, err);
}

/* A GPU when there is one; otherwise it is told why not, unless no device for it is installed. */
static ol_code open_best(ol_engine *engine, const ol_engine_options *o, ol_error *err)
{
    ol_code code = load_device(engine, o, "cuda", err);

    if (code == OL_NOT_FOUND)
        return open_named(engine, o, "cpu", 0, err);
    if (code == OL_OK)
        code = open_loaded(engine, o, 0, err);
    if (code == OL_OK)
        return OL_OK;
    ol_log(code == OL_NOT_FOUND ? OL_LOG_INFO : OL_LOG_WARNING,
           "the CPU computes, as no GPU can: %s. %s", err->message, err->detail);
    return open_named(engine, o, "cpu", 0, err);
}

static ol_code open_device(ol_engine *engine, const ol_engine_options *o, ol_error *err)
{
    const char *name = o->device ? o->device : "auto";
    char *end;
    long index;

    if (strcmp(name, "auto") == 0)
        return open_best(engine, o, err);
    if (strcmp(name, "cpu") == 0)
        return open_named(engine, o, "cpu", 0, err);
    if (strcmp(name, "cuda") == 0)
        return open_named(engine, o, "cuda", 0, err);
    if (strncmp(name, "cuda:", 5) == 0 && name[5] >= '0' && name[5] <= '9') {
        index = strtol(name + 5, &end, 10);
        if (*end == '\0' && index <= 1023)
            return open_named(engine, o, "cuda", (int)index, err);
    }
    ol_fail(err, OL_INVALID, "there is no device \"%s\"", name);
    return ol_hint(err, "Devices are \"auto\", \"cpu\", \"cuda\" and \"cuda:N\".");
}

/* -- the model ----------------------------------------------------------------------------- */

/* Loading reads the weights twice: to place them, and, on a thread of its own, for their digest:
 * one processor makes 2 GB of it a second, and it is of what is served, whatever a file's times
 * say. */
typedef struct digesting {
    ol_model_source *source;
    pthread_t thread;
    _Atomic size_t done;
    ol_digest digest;
    ol_code code;
    ol_error error;
} digesting;

static void note_digested(void *context, size_t done, size_t total)
{
    digesting *d = context;

    (void)total;
    d->done = done;
}

static void *run_digest(void *context)
{
    digesting *d = context;

    d->code = ol_model_source_digest(d->source, note_digested, d, &d->digest, &d->error);
    return NULL;
}

/* Signals are the engine thread's. Without a thread it is made here and now. */
static bool start_digest(digesting *d)
{
    sigset_t all, before;
    bool started;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    started = pthread_create(&d->thread, NULL, run_digest, d) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!started)
        (void)run_digest(d);
    return started;
}

typedef struct stage {
    const ol_engine_options *options;
    size_t total;
    digesting *digest;
} stage;

static void tell_progress(void *context, size_t done, size_t total)
{
    const stage *s = context;

    (void)total;
    if (s->options->progress)
        s->options->progress(s->options->progress_context, s->digest->done + done, s->total);
}

static ol_code open_model(ol_engine *engine, const ol_engine_options *o, ol_error *err)
{
    size_t bytes = ol_model_source_bytes(engine->source);
    digesting digest = {.source = engine->source};
    stage s = {.options = o, .total = 2 * bytes, .digest = &digest};
    ol_model_options how = {.table = engine->table,
                            .device = engine->device,
                            .quantization = o->quantization,
                            .progress = tell_progress,
                            .progress_context = &s};
    bool threaded;
    ol_code code;

    OL_TRY(ol_model_source_check(engine->source, NULL, NULL, err));
    OL_TRY(ol_vocab_of_model(engine->source, &engine->tok, err));
    threaded = start_digest(&digest);
    code = ol_model_load(engine->source, &how, &engine->model, err);
    if (threaded)
        (void)pthread_join(digest.thread, NULL);
    if (code != OL_OK)
        return code;
    if (digest.code != OL_OK) {
        *err = digest.error;
        return digest.code;
    }
    engine->digest = digest.digest;
    tell_progress(&s, bytes, bytes);
    return OL_OK;
}

static void add_eos(ol_engine *engine, int32_t token)
{
    if (token >= 0 && token < engine->config->vocab)
        engine->eos[token >> 6] |= (uint64_t)1 << (token & 63);
}

static ol_code make_eos(ol_engine *engine, ol_error *err)
{
    size_t words = ((size_t)engine->config->vocab + 63) / 64, n = 0;
    const int32_t *ids = engine->tok ? ol_tokenizer_eog(engine->tok, &n) : NULL;

    engine->eos = calloc(words, sizeof(uint64_t));
    if (!engine->eos)
        return ol_fail_nomem(err, words * sizeof(uint64_t), "the engine");
    for (size_t i = 0; i < n; i++)
        add_eos(engine, ids[i]);
    for (int i = 0; i < engine->config->n_eos; i++)
        add_eos(engine, engine->config->eos[i]);
    return OL_OK;
}

/* -- the KV cache ----------------------------------------------------------------------------- */

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

    l->context = or_default(o->context, engine->config->max_position);
    if (l->context > engine->config->max_position)
        l->context = engine->config->max_position;
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

static ol_code open_kv(ol_engine *engine, const ol_engine_options *o, ol_error *err)
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

/* -- the rest ------------------------------------------------------------------------------------
 */

static void adapters_in_pool(const ol_engine *engine, const ol_engine_options *o,
                             ol_adapters_options *adapters)
{
    size_t all = (size_t)engine->limits.pool_pages * engine->page_bytes;

    adapters->pool = ol_sched_pages(engine->sched);
    adapters->kv = engine->kv;
    adapters->page_bytes = engine->page_bytes;
    adapters->budget = o->adapter_bytes && o->adapter_bytes < all ? o->adapter_bytes : all;
}

static ol_code open_tables(ol_engine *engine, const ol_engine_options *o, ol_error *err)
{
    const limits *l = &engine->limits;
    ol_adapters_options adapters = {.table = engine->table,
                                    .device = engine->device,
                                    .base = engine->config,
                                    .budget = o->adapter_bytes ? o->adapter_bytes
                                                               : DEFAULT_ADAPTER_BYTES};
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
    OL_TRY(ol_chooser_create(engine->config->vocab, &engine->chooser, err));
    return make_eos(engine, err);
}

static ol_code open_all(ol_engine *engine, const ol_engine_options *o, ol_error *err)
{
    if (!o->model_path)
        return ol_fail(err, OL_INVALID, "no model is named");
    engine->patience_us = PATIENCE_US;
    engine->step_us = (uint64_t)or_default(o->step_ms, DEFAULT_STEP_MS) * 1000;
    OL_TRY(take_limits(o, &engine->limits, err));
    OL_TRY(ol_model_source_open(o->model_path, &engine->source, err));
    engine->config = ol_model_source_config(engine->source);
    OL_TRY(open_device(engine, o, err));
    OL_TRY(open_model(engine, o, err));
    OL_TRY(open_kv(engine, o, err));
    return open_tables(engine, o, err);
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
    ol_loader_free(engine->loader, offer_drop, engine);
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
