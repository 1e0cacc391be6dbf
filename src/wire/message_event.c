/* message_event.c: what the engine says of a request: events, failures, receipts. See message.h. */
#include "wire/message.h"

#include "wire/fields.h"

#include <string.h>

/* -- errors ------------------------------------------------------------------ */

static void put_error_fields(ol_buf *buf, const ol_error *e)
{
    ol_buf_put_u8(buf, (uint8_t)e->code);
    ol_put_string(buf, e->message);
    ol_put_string(buf, e->detail);
    ol_put_string(buf, e->hint);
}

static void get_error_fields(ol_reader *r, ol_error *e)
{
    uint8_t code = ol_get_u8(r);

    e->code = code == OL_OK || code > OL_CODE_LAST ? OL_INTERNAL : (ol_code)code;
    ol_get_string(r, e->message, sizeof(e->message));
    ol_get_string(r, e->detail, sizeof(e->detail));
    ol_get_string(r, e->hint, sizeof(e->hint));
}

void ol_wire_put_error(ol_buf *buf, const ol_error *error)
{
    put_error_fields(buf, error);
}

bool ol_wire_get_error(ol_reader *r, ol_error *error)
{
    get_error_fields(r, error);
    return ol_reader_ended(r);
}

/* -- events ------------------------------------------------------------------ */

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
    e->index = ol_get_count(r, INT32_MAX);
    e->token = ol_get_count(r, INT32_MAX);
    e->text.data = (const char *)ol_get_blob(r, &e->text.len);
    e->logprob = ol_get_f32(r);
    e->n_alternatives = ol_get_count(r, OL_MAX_LOGPROBS);
    e->alternatives = scratch->alternatives;
    for (int i = 0; i < e->n_alternatives; i++) {
        scratch->alternatives[i].token = ol_get_count(r, INT32_MAX);
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
    ol_put_shares(buf, e->shares, e->n_shares);
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
    e->prompt_tokens = ol_get_count(r, INT32_MAX);
    e->completion_tokens = ol_get_count(r, INT32_MAX);
    e->cached_tokens = ol_get_count(r, e->prompt_tokens);
    e->logprob_sum = ol_get_f64(r);
    e->n_shares = ol_get_shares(r, scratch->shares, OL_MAX_REQUEST_ADAPTERS);
    e->shares = scratch->shares;
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
        ol_put_digest(buf, &e->digest);
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
        ol_get_digest(r, &e->digest);
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
    return ol_reader_ended(r);
}

void ol_wire_put_usage(ol_buf *buf, const ol_event *e)
{
    ol_buf_put_u8(buf, (uint8_t)e->outcome);
    ol_buf_put_u32(buf, (uint32_t)e->prompt_tokens);
    ol_buf_put_u32(buf, (uint32_t)e->completion_tokens);
    ol_buf_put_u32(buf, (uint32_t)e->cached_tokens);
    ol_put_digest(buf, &e->digest);
    ol_put_shares(buf, e->shares, e->n_shares);
    ol_buf_put_blob(buf, e->text.data, e->text.len);
}

bool ol_wire_get_usage(ol_reader *r, ol_wire_event_scratch *scratch, ol_event *e)
{
    uint8_t outcome = ol_get_u8(r);

    memset(e, 0, sizeof(*e));
    e->kind = OL_EVENT_USAGE;
    r->bad |= outcome > OL_OUTCOME_SO_FAR;
    e->outcome = (ol_outcome)outcome;
    e->prompt_tokens = ol_get_count(r, INT32_MAX);
    e->completion_tokens = ol_get_count(r, INT32_MAX);
    e->cached_tokens = ol_get_count(r, e->prompt_tokens);
    ol_get_digest(r, &e->digest);
    e->n_shares = ol_get_shares(r, scratch->shares, OL_MAX_REQUEST_ADAPTERS);
    e->shares = scratch->shares;
    e->text.data = (const char *)ol_get_blob(r, &e->text.len);
    return ol_reader_ended(r) && e->text.len <= OL_MAX_METER_BYTES;
}
