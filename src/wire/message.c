/* message.c: see message.h. Encoders and decoders stand in pairs, field by field. */
#include "wire/message.h"

#include "base/arena.h"

#include <string.h>

static bool finished(const ol_reader *r)
{
    return !r->bad && ol_reader_left(r) == 0;
}

static void put_digest(ol_buf *buf, const ol_digest *digest)
{
    ol_buf_put(buf, digest->bytes, OL_DIGEST_BYTES);
}

static void get_digest(ol_reader *r, ol_digest *digest)
{
    const uint8_t *at = ol_get(r, OL_DIGEST_BYTES);

    if (at)
        memcpy(digest->bytes, at, OL_DIGEST_BYTES);
}

/* A string into a fixed array, always terminated. */
static void get_string(ol_reader *r, char *out, size_t size)
{
    size_t len;
    const uint8_t *at = ol_get_blob(r, &len);

    out[0] = '\0';
    if (!at || len >= size || memchr(at, 0, len)) {
        r->bad = true;
        return;
    }
    memcpy(out, at, len);
    out[len] = '\0';
}

static void put_string(ol_buf *buf, const char *text)
{
    ol_buf_put_blob(buf, text, strlen(text));
}

static bool get_bool(ol_reader *r)
{
    uint8_t v = ol_get_u8(r);

    if (v > 1)
        r->bad = true;
    return v == 1;
}

/* A u32 that must be at most `max`. */
static int get_count(ol_reader *r, uint32_t max)
{
    uint32_t v = ol_get_u32(r);

    if (v > max) {
        r->bad = true;
        return 0;
    }
    return (int)v;
}

/* -- sampling ---------------------------------------------------------------- */

static void put_sampling(ol_buf *buf, const ol_sampling *s)
{
    ol_buf_put_f32(buf, s->temperature);
    ol_buf_put_u32(buf, (uint32_t)s->top_k);
    ol_buf_put_f32(buf, s->top_p);
    ol_buf_put_f32(buf, s->min_p);
    ol_buf_put_f32(buf, s->repetition_penalty);
    ol_buf_put_f32(buf, s->presence_penalty);
    ol_buf_put_f32(buf, s->frequency_penalty);
    ol_buf_put_u64(buf, s->seed);
    ol_buf_put_u32(buf, (uint32_t)s->max_tokens);
    ol_buf_put_u8(buf, s->ignore_eos);
    ol_buf_put_u32(buf, (uint32_t)(s->logprobs + 1)); /* -1 .. OL_MAX_LOGPROBS */
    ol_buf_put_u32(buf, (uint32_t)s->n_bias);
    for (int i = 0; i < s->n_bias; i++) {
        ol_buf_put_u32(buf, (uint32_t)s->bias[i].token);
        ol_buf_put_f32(buf, s->bias[i].bias);
    }
    ol_buf_put_u32(buf, (uint32_t)s->n_stops);
    for (int i = 0; i < s->n_stops; i++)
        ol_buf_put_blob(buf, s->stops[i].data, s->stops[i].len);
}

static void get_bias(ol_reader *r, ol_arena *arena, ol_sampling *s)
{
    ol_logit_bias *bias;

    s->n_bias = get_count(r, OL_MAX_LOGIT_BIAS);
    bias = ol_arena_array(arena, (size_t)s->n_bias, sizeof(*bias));
    s->bias = bias;
    for (int i = 0; bias && i < s->n_bias; i++) {
        bias[i].token = get_count(r, INT32_MAX);
        bias[i].bias = ol_get_f32(r);
    }
    r->bad |= !bias;
}

static void get_stops(ol_reader *r, ol_arena *arena, ol_sampling *s)
{
    ol_text *stops;

    s->n_stops = get_count(r, OL_MAX_STOPS);
    stops = ol_arena_array(arena, (size_t)s->n_stops, sizeof(*stops));
    s->stops = stops;
    for (int i = 0; stops && i < s->n_stops && !r->bad; i++) {
        size_t len;
        const uint8_t *at = ol_get_blob(r, &len);
        char *copy =
            at && len <= OL_MAX_STOP_BYTES ? ol_arena_strndup(arena, (const char *)at, len) : NULL;

        if (!copy)
            r->bad = true;
        stops[i] = (ol_text){copy, len};
    }
    r->bad |= !stops;
}

static void get_sampling(ol_reader *r, ol_arena *arena, ol_sampling *s)
{
    s->temperature = ol_get_f32(r);
    s->top_k = get_count(r, INT32_MAX);
    s->top_p = ol_get_f32(r);
    s->min_p = ol_get_f32(r);
    s->repetition_penalty = ol_get_f32(r);
    s->presence_penalty = ol_get_f32(r);
    s->frequency_penalty = ol_get_f32(r);
    s->seed = ol_get_u64(r);
    s->max_tokens = get_count(r, INT32_MAX);
    s->ignore_eos = get_bool(r);
    s->logprobs = get_count(r, OL_MAX_LOGPROBS + 1) - 1;
    get_bias(r, arena, s);
    get_stops(r, arena, s);
}

/* -- request ----------------------------------------------------------------- */

void ol_wire_put_request(ol_buf *buf, const ol_request *q)
{
    ol_buf_put_blob(buf, q->meter.data, q->meter.len);
    ol_buf_put_u8(buf, (uint8_t)q->task);
    ol_buf_put_u8(buf, q->parse_special);
    ol_buf_put_u8(buf, q->quiet);
    ol_buf_put_u64(buf, q->prompt.len);
    ol_buf_put_u64(buf, q->completion.len);
    ol_buf_put_u32(buf, (uint32_t)q->n_adapters);
    for (int i = 0; i < q->n_adapters; i++) {
        put_digest(buf, &q->adapters[i].digest);
        ol_buf_put_f32(buf, q->adapters[i].weight);
    }
    put_sampling(buf, &q->sampling);
    ol_buf_put_u32(buf, q->tenant);
    ol_buf_put_f32(buf, q->tenant_weight);
    ol_buf_put_u32(buf, (uint32_t)q->priority);
    ol_buf_put_u32(buf, q->timeout_ms);
    put_digest(buf, &q->meter_salt);
}

bool ol_wire_get_meter(ol_reader *r, ol_text *meter)
{
    meter->data = (const char *)ol_get_blob(r, &meter->len);
    return !r->bad && meter->len <= OL_MAX_METER_BYTES;
}

bool ol_wire_get_request(ol_reader *r, struct ol_arena *arena, const uint8_t *upload,
                         size_t upload_len, ol_request *q)
{
    ol_adapter_use *adapters;
    uint64_t prompt_len, completion_len;
    uint8_t task;

    memset(q, 0, sizeof(*q));
    if (!ol_wire_get_meter(r, &q->meter))
        return false;
    task = ol_get_u8(r);
    q->task = (ol_task)task;
    q->parse_special = get_bool(r);
    q->quiet = get_bool(r);
    prompt_len = ol_get_u64(r);
    completion_len = ol_get_u64(r);
    if (task > OL_TASK_SCORE || prompt_len > upload_len ||
        completion_len != upload_len - prompt_len)
        return false;
    q->prompt = (ol_text){(const char *)upload, (size_t)prompt_len};
    q->completion =
        (ol_text){upload ? (const char *)upload + prompt_len : NULL, (size_t)completion_len};
    q->n_adapters = get_count(r, OL_MAX_REQUEST_ADAPTERS);
    adapters = ol_arena_array(arena, (size_t)q->n_adapters, sizeof(*adapters));
    if (!adapters)
        return false;
    q->adapters = adapters;
    for (int i = 0; i < q->n_adapters; i++) {
        get_digest(r, &adapters[i].digest);
        adapters[i].weight = ol_get_f32(r);
    }
    get_sampling(r, arena, &q->sampling);
    q->tenant = ol_get_u32(r);
    q->tenant_weight = ol_get_f32(r);
    q->priority = (int32_t)ol_get_u32(r);
    q->timeout_ms = ol_get_u32(r);
    get_digest(r, &q->meter_salt);
    return finished(r);
}

/* -- adapters, texts --------------------------------------------------------- */

void ol_wire_put_adapter(ol_buf *buf, const ol_wire_adapter *a)
{
    put_digest(buf, &a->digest);
    ol_buf_put_u64(buf, a->weights_len);
    ol_buf_put_u64(buf, a->config_len);
}

bool ol_wire_get_adapter(ol_reader *r, ol_wire_adapter *a)
{
    get_digest(r, &a->digest);
    a->weights_len = ol_get_u64(r);
    a->config_len = ol_get_u64(r);
    return finished(r);
}

void ol_wire_put_facts(ol_buf *buf, const ol_adapter_facts *f)
{
    put_digest(buf, &f->digest);
    ol_buf_put_u32(buf, (uint32_t)f->max_rank);
    ol_buf_put_u32(buf, (uint32_t)f->n_modules);
    ol_buf_put_u64(buf, (uint64_t)f->parameters);
    ol_buf_put_u64(buf, f->device_bytes);
    ol_buf_put_u32(buf, f->module_mask);
}

bool ol_wire_get_facts(ol_reader *r, ol_adapter_facts *f)
{
    get_digest(r, &f->digest);
    f->max_rank = get_count(r, INT32_MAX);
    f->n_modules = get_count(r, INT32_MAX);
    f->parameters = (int64_t)ol_get_u64(r);
    f->device_bytes = (size_t)ol_get_u64(r);
    f->module_mask = ol_get_u32(r);
    return finished(r) && f->parameters >= 0;
}

void ol_wire_put_text_op(ol_buf *buf, const ol_wire_text_op *op)
{
    ol_buf_put_u8(buf, op->add_bos);
    ol_buf_put_u8(buf, op->parse_special);
    ol_buf_put_u8(buf, op->skip_special);
}

bool ol_wire_get_text_op(ol_reader *r, ol_wire_text_op *op)
{
    op->add_bos = get_bool(r);
    op->parse_special = get_bool(r);
    op->skip_special = get_bool(r);
    return finished(r);
}

/* -- events ------------------------------------------------------------------ */

static void put_error_fields(ol_buf *buf, const ol_error *e)
{
    ol_buf_put_u8(buf, (uint8_t)e->code);
    put_string(buf, e->message);
    put_string(buf, e->detail);
    put_string(buf, e->hint);
}

static void get_error_fields(ol_reader *r, ol_error *e)
{
    uint8_t code = ol_get_u8(r);

    e->code = code == OL_OK || code > OL_CODE_LAST ? OL_INTERNAL : (ol_code)code;
    get_string(r, e->message, sizeof(e->message));
    get_string(r, e->detail, sizeof(e->detail));
    get_string(r, e->hint, sizeof(e->hint));
}

static void put_token(ol_buf *buf, const ol_event *e)
{
    ol_buf_put_u32(buf, (uint32_t)e->index);
    ol_buf_put_u32(buf, (uint32_t)e->token);
    ol_buf_put_blob(buf, e->text.data, e->text.len);
    ol_buf_put_f32(buf, e->logprob);
    ol_buf_put_u32(buf, (uint32_t)e->n_alternatives);
    for (int i = 0; i < e->n_alternatives; i++) {
        ol_buf_put_u32(buf, (uint32_t)e->alternatives[i].token);
        ol_buf_put_f32(buf, e->alternatives[i].logprob);
    }
}

static void get_token(ol_reader *r, ol_wire_event_scratch *scratch, ol_event *e)
{
    e->index = get_count(r, INT32_MAX);
    e->token = get_count(r, INT32_MAX);
    e->text.data = (const char *)ol_get_blob(r, &e->text.len);
    e->logprob = ol_get_f32(r);
    e->n_alternatives = get_count(r, OL_MAX_LOGPROBS);
    e->alternatives = scratch->alternatives;
    for (int i = 0; i < e->n_alternatives; i++) {
        scratch->alternatives[i].token = get_count(r, INT32_MAX);
        scratch->alternatives[i].logprob = ol_get_f32(r);
    }
}

static void put_done(ol_buf *buf, const ol_event *e)
{
    ol_buf_put_u8(buf, (uint8_t)e->finish);
    ol_buf_put_u32(buf, (uint32_t)e->prompt_tokens);
    ol_buf_put_u32(buf, (uint32_t)e->completion_tokens);
    ol_buf_put_u32(buf, (uint32_t)e->cached_tokens);
    ol_buf_put_f64(buf, e->logprob_sum);
    ol_buf_put_u32(buf, (uint32_t)e->n_shares);
    for (int i = 0; i < e->n_shares; i++)
        ol_buf_put_f64(buf, e->shares[i]);
    ol_buf_put_u64(buf, e->queue_us);
    ol_buf_put_u64(buf, e->prefill_us);
    ol_buf_put_u64(buf, e->decode_us);
    /* the last piece of text, released when nothing can stop it any more */
    ol_buf_put_blob(buf, e->text.data, e->text.len);
}

static void get_done(ol_reader *r, ol_wire_event_scratch *scratch, ol_event *e)
{
    uint8_t finish = ol_get_u8(r);

    r->bad |= finish > OL_FINISH_SCORED;
    e->finish = (ol_finish)finish;
    e->prompt_tokens = get_count(r, INT32_MAX);
    e->completion_tokens = get_count(r, INT32_MAX);
    e->cached_tokens = get_count(r, e->prompt_tokens);
    e->logprob_sum = ol_get_f64(r);
    e->n_shares = get_count(r, OL_MAX_REQUEST_ADAPTERS);
    e->shares = scratch->shares;
    for (int i = 0; i < e->n_shares; i++) {
        scratch->shares[i] = ol_get_f64(r);
        r->bad |= !(scratch->shares[i] >= 0.0 && scratch->shares[i] <= 1.0);
    }
    e->queue_us = ol_get_u64(r);
    e->prefill_us = ol_get_u64(r);
    e->decode_us = ol_get_u64(r);
    e->text.data = (const char *)ol_get_blob(r, &e->text.len);
}

void ol_wire_put_event(ol_buf *buf, const ol_event *e)
{
    ol_buf_put_u8(buf, (uint8_t)e->kind);
    switch (e->kind) {
    case OL_EVENT_TOKEN:
        put_token(buf, e);
        break;
    case OL_EVENT_NEED_ADAPTER:
        put_digest(buf, &e->digest);
        break;
    case OL_EVENT_DONE:
        put_done(buf, e);
        break;
    case OL_EVENT_FAILED:
        put_error_fields(buf, &e->error);
        break;
    case OL_EVENT_USAGE: /* no session's */
        break;
    }
}

bool ol_wire_get_event(ol_reader *r, ol_wire_event_scratch *scratch, ol_event *e)
{
    uint8_t kind = ol_get_u8(r);

    memset(e, 0, sizeof(*e));
    e->kind = (ol_event_kind)kind;
    switch (kind) {
    case OL_EVENT_TOKEN:
        get_token(r, scratch, e);
        break;
    case OL_EVENT_NEED_ADAPTER:
        get_digest(r, &e->digest);
        break;
    case OL_EVENT_DONE:
        get_done(r, scratch, e);
        break;
    case OL_EVENT_FAILED:
        get_error_fields(r, &e->error);
        break;
    default:
        return false;
    }
    return finished(r);
}

void ol_wire_put_usage(ol_buf *buf, const ol_event *e)
{
    ol_buf_put_u8(buf, (uint8_t)e->outcome);
    ol_buf_put_u32(buf, (uint32_t)e->prompt_tokens);
    ol_buf_put_u32(buf, (uint32_t)e->completion_tokens);
    ol_buf_put_u32(buf, (uint32_t)e->cached_tokens);
    put_digest(buf, &e->digest);
    ol_buf_put_u32(buf, (uint32_t)e->n_shares);
    for (int i = 0; i < e->n_shares; i++)
        ol_buf_put_f64(buf, e->shares[i]);
    ol_buf_put_blob(buf, e->text.data, e->text.len);
}

bool ol_wire_get_usage(ol_reader *r, ol_wire_event_scratch *scratch, ol_event *e)
{
    uint8_t outcome = ol_get_u8(r);

    memset(e, 0, sizeof(*e));
    e->kind = OL_EVENT_USAGE;
    r->bad |= outcome > OL_OUTCOME_SO_FAR;
    e->outcome = (ol_outcome)outcome;
    e->prompt_tokens = get_count(r, INT32_MAX);
    e->completion_tokens = get_count(r, INT32_MAX);
    e->cached_tokens = get_count(r, e->prompt_tokens);
    get_digest(r, &e->digest);
    e->n_shares = get_count(r, OL_MAX_REQUEST_ADAPTERS);
    e->shares = scratch->shares;
    for (int i = 0; i < e->n_shares; i++) {
        scratch->shares[i] = ol_get_f64(r);
        r->bad |= !(scratch->shares[i] >= 0.0 && scratch->shares[i] <= 1.0);
    }
    e->text.data = (const char *)ol_get_blob(r, &e->text.len);
    return finished(r) && e->text.len <= OL_MAX_METER_BYTES;
}

void ol_wire_put_error(ol_buf *buf, const ol_error *error)
{
    put_error_fields(buf, error);
}

bool ol_wire_get_error(ol_reader *r, ol_error *error)
{
    get_error_fields(r, error);
    return finished(r);
}

/* -- info -------------------------------------------------------------------- */

void ol_wire_put_info(ol_buf *buf, const ol_engine_info *i)
{
    const uint64_t counts[] = {i->steps,
                               i->prompt_tokens,
                               i->generated_tokens,
                               i->requests,
                               i->failed,
                               i->cancelled,
                               i->adapter_loads,
                               i->adapter_hits,
                               i->adapter_evictions,
                               i->cached_tokens,
                               i->rows,
                               i->sequences,
                               i->busy_us,
                               i->preemptions,
                               i->rejected,
                               i->adapter_copy_loads,
                               i->adapter_bytes,
                               i->adapter_copy_bytes,
                               (uint64_t)i->parameters,
                               i->device.memory_used,
                               i->device.memory_total};
    const int32_t numbers[] = {
        i->vocab,          i->hidden,        i->layers,         i->context,      i->kv_pages,
        i->kv_pages_free,  i->page_tokens,   i->running,        i->waiting,      i->adapters,
        i->device.threads, i->kv_pages_idle, i->adapter_copies, i->has_tokenizer};

    put_string(buf, i->model_name);
    put_string(buf, i->architecture);
    put_string(buf, i->format);
    put_digest(buf, &i->model_digest);
    put_string(buf, i->device.name);
    put_string(buf, i->device.description);
    for (size_t k = 0; k < sizeof(counts) / sizeof(counts[0]); k++)
        ol_buf_put_u64(buf, counts[k]);
    for (size_t k = 0; k < sizeof(numbers) / sizeof(numbers[0]); k++)
        ol_buf_put_u32(buf, (uint32_t)numbers[k]);
}

bool ol_wire_get_info(ol_reader *r, ol_engine_info *i)
{
    uint64_t *const counts[] = {&i->steps,
                                &i->prompt_tokens,
                                &i->generated_tokens,
                                &i->requests,
                                &i->failed,
                                &i->cancelled,
                                &i->adapter_loads,
                                &i->adapter_hits,
                                &i->adapter_evictions,
                                &i->cached_tokens,
                                &i->rows,
                                &i->sequences,
                                &i->busy_us,
                                &i->preemptions,
                                &i->rejected,
                                &i->adapter_copy_loads};
    int *const numbers[] = {
        &i->vocab,          &i->hidden,        &i->layers,        &i->context, &i->kv_pages,
        &i->kv_pages_free,  &i->page_tokens,   &i->running,       &i->waiting, &i->adapters,
        &i->device.threads, &i->kv_pages_idle, &i->adapter_copies};

    memset(i, 0, sizeof(*i));
    get_string(r, i->model_name, sizeof(i->model_name));
    get_string(r, i->architecture, sizeof(i->architecture));
    get_string(r, i->format, sizeof(i->format));
    get_digest(r, &i->model_digest);
    get_string(r, i->device.name, sizeof(i->device.name));
    get_string(r, i->device.description, sizeof(i->device.description));
    for (size_t k = 0; k < sizeof(counts) / sizeof(counts[0]); k++)
        *counts[k] = ol_get_u64(r);
    i->adapter_bytes = (size_t)ol_get_u64(r);
    i->adapter_copy_bytes = (size_t)ol_get_u64(r);
    i->parameters = (int64_t)ol_get_u64(r);
    i->device.memory_used = (size_t)ol_get_u64(r);
    i->device.memory_total = (size_t)ol_get_u64(r);
    for (size_t k = 0; k < sizeof(numbers) / sizeof(numbers[0]); k++)
        *numbers[k] = get_count(r, INT32_MAX);
    i->has_tokenizer = get_count(r, 1) == 1;
    return finished(r);
}
