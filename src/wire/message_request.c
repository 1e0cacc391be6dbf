/* message_request.c: a request as it travels: see message.h. */
#include "wire/message.h"

#include "base/arena.h"
#include "wire/fields.h"

#include <string.h>

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

    s->n_bias = ol_get_count(r, OL_MAX_LOGIT_BIAS);
    bias = ol_arena_array(arena, (size_t)s->n_bias, sizeof(*bias));
    s->bias = bias;
    for (int i = 0; bias && i < s->n_bias; i++) {
        bias[i].token = ol_get_count(r, INT32_MAX);
        bias[i].bias = ol_get_f32(r);
    }
    r->bad |= !bias;
}

static void get_stops(ol_reader *r, ol_arena *arena, ol_sampling *s)
{
    ol_text *stops;

    s->n_stops = ol_get_count(r, OL_MAX_STOPS);
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
    s->top_k = ol_get_count(r, INT32_MAX);
    s->top_p = ol_get_f32(r);
    s->min_p = ol_get_f32(r);
    s->repetition_penalty = ol_get_f32(r);
    s->presence_penalty = ol_get_f32(r);
    s->frequency_penalty = ol_get_f32(r);
    s->seed = ol_get_u64(r);
    s->max_tokens = ol_get_count(r, INT32_MAX);
    s->ignore_eos = ol_get_bool(r);
    s->logprobs = ol_get_count(r, OL_MAX_LOGPROBS + 1) - 1;
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
        ol_put_digest(buf, &q->adapters[i].digest);
        ol_buf_put_f32(buf, q->adapters[i].weight);
    }
    put_sampling(buf, &q->sampling);
    ol_buf_put_u32(buf, q->tenant);
    ol_buf_put_f32(buf, q->tenant_weight);
    ol_buf_put_u32(buf, (uint32_t)q->priority);
    ol_buf_put_u32(buf, q->timeout_ms);
    ol_put_digest(buf, &q->meter_salt);
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
    q->parse_special = ol_get_bool(r);
    q->quiet = ol_get_bool(r);
    prompt_len = ol_get_u64(r);
    completion_len = ol_get_u64(r);
    if (task > OL_TASK_SCORE || prompt_len > upload_len ||
        completion_len != upload_len - prompt_len)
        return false;
    q->prompt = (ol_text){(const char *)upload, (size_t)prompt_len};
    q->completion =
        (ol_text){upload ? (const char *)upload + prompt_len : NULL, (size_t)completion_len};
    q->n_adapters = ol_get_count(r, OL_MAX_REQUEST_ADAPTERS);
    adapters = ol_arena_array(arena, (size_t)q->n_adapters, sizeof(*adapters));
    if (!adapters)
        return false;
    q->adapters = adapters;
    for (int i = 0; i < q->n_adapters; i++) {
        ol_get_digest(r, &adapters[i].digest);
        adapters[i].weight = ol_get_f32(r);
    }
    get_sampling(r, arena, &q->sampling);
    q->tenant = ol_get_u32(r);
    q->tenant_weight = ol_get_f32(r);
    q->priority = (int32_t)ol_get_u32(r);
    q->timeout_ms = ol_get_u32(r);
    ol_get_digest(r, &q->meter_salt);
    return ol_reader_ended(r);
}
