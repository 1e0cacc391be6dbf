/* stats.c: see stats.h. */
#include "wire/stats.h"

#include "wire/fields.h"

#include <string.h>

void ol_wire_put_request_stat(ol_buf *buf, const ol_request_stat *s)
{
    const int counts[] = {s->prompt_tokens, s->cached_tokens, s->output_tokens, s->computed_tokens,
                          s->preempted};

    ol_buf_put_u32(buf, s->session);
    ol_buf_put_u64(buf, s->tag);
    ol_buf_put_u32(buf, s->tenant);
    ol_buf_put_u8(buf, (uint8_t)s->task);
    ol_buf_put_u8(buf, (uint8_t)s->state);
    ol_buf_put_u32(buf, (uint32_t)s->priority);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        ol_buf_put_u32(buf, (uint32_t)counts[i]);
    ol_buf_put_u64(buf, s->age_us);
    ol_buf_put_u64(buf, s->running_us);
    ol_buf_put_u32(buf, (uint32_t)s->n_adapters);
    for (int i = 0; i < s->n_adapters; i++)
        ol_put_digest(buf, &s->adapters[i]);
}

bool ol_wire_get_request_stat(ol_reader *r, ol_request_stat *s)
{
    int *const counts[] = {&s->prompt_tokens, &s->cached_tokens, &s->output_tokens,
                           &s->computed_tokens, &s->preempted};
    uint8_t task, state;

    memset(s, 0, sizeof(*s));
    if (r->bad || ol_reader_left(r) == 0)
        return false;
    s->session = ol_get_u32(r);
    s->tag = ol_get_u64(r);
    s->tenant = ol_get_u32(r);
    task = ol_get_u8(r);
    state = ol_get_u8(r);
    r->bad |= task > OL_TASK_SCORE || state > OL_REQUEST_STATE_LAST;
    s->task = (ol_task)task;
    s->state = (ol_request_state)state;
    s->priority = (int32_t)ol_get_u32(r);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        *counts[i] = ol_get_count(r, INT32_MAX);
    s->age_us = ol_get_u64(r);
    s->running_us = ol_get_u64(r);
    s->n_adapters = ol_get_count(r, OL_MAX_REQUEST_ADAPTERS);
    for (int i = 0; i < s->n_adapters; i++)
        ol_get_digest(r, &s->adapters[i]);
    return !r->bad;
}

void ol_wire_put_adapter_stat(ol_buf *buf, const ol_adapter_stat *s)
{
    const uint64_t counts[] = {s->bytes, s->hits, s->misses, s->loads, s->load_us, s->idle_us};

    ol_put_digest(buf, &s->digest);
    ol_buf_put_u8(buf, s->resident);
    ol_buf_put_u8(buf, s->loading);
    ol_buf_put_u8(buf, s->copied);
    ol_buf_put_u32(buf, (uint32_t)s->requests);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        ol_buf_put_u64(buf, counts[i]);
}

bool ol_wire_get_adapter_stat(ol_reader *r, ol_adapter_stat *s)
{
    uint64_t *const counts[] = {&s->bytes, &s->hits,    &s->misses,
                                &s->loads, &s->load_us, &s->idle_us};

    memset(s, 0, sizeof(*s));
    if (r->bad || ol_reader_left(r) == 0)
        return false;
    ol_get_digest(r, &s->digest);
    s->resident = ol_get_u8(r) != 0;
    s->loading = ol_get_u8(r) != 0;
    s->copied = ol_get_u8(r) != 0;
    s->requests = ol_get_count(r, INT32_MAX);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        *counts[i] = ol_get_u64(r);
    return !r->bad;
}
