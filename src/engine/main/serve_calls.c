/* serve_calls.c: questions that are answered at once: tokens of a text and back, statistics. */
#include "engine/main/serve.h"

#include "wire/stats.h"

#include <stdlib.h>

ol_code serve_malformed(const ol_frame *frame, ol_error *err)
{
    return ol_fail(err, OL_INVALID, "malformed frame of type %u", (unsigned)frame->type);
}

/* -- texts ------------------------------------------------------------------------------- */

static ol_code tokenize(server *s, const tag_entry *e, ol_reader *r, const ol_frame *frame,
                        ol_error *err)
{
    ol_wire_text_op op;
    ol_tokens tokens;

    if (!ol_wire_get_text_op(r, &op))
        return serve_malformed(frame, err);
    OL_TRY(ol_engine_tokenize(s->engine, (ol_text){(const char *)e->upload.data, e->upload.len},
                              op.add_bos, op.parse_special, &tokens, err));
    outbox_send_data(&s->out, frame, tokens.ids, tokens.n * sizeof(int32_t));
    outbox_send(&s->out, frame, OL_FRAME_END);
    free(tokens.ids);
    return OL_OK;
}

static ol_code detokenize(server *s, const tag_entry *e, ol_reader *r, const ol_frame *frame,
                          ol_error *err)
{
    ol_tokens tokens = {(int32_t *)(void *)e->upload.data, e->upload.len / sizeof(int32_t)};
    ol_wire_text_op op;
    char *text;
    size_t len;

    if (!ol_wire_get_text_op(r, &op) || e->upload.len % sizeof(int32_t) != 0)
        return serve_malformed(frame, err);
    OL_TRY(ol_engine_detokenize(s->engine, &tokens, op.skip_special, &text, &len, err));
    outbox_send_data(&s->out, frame, text, len);
    outbox_send(&s->out, frame, OL_FRAME_END);
    free(text);
    return OL_OK;
}

/* -- statistics -------------------------------------------------------------------------- */

static void tell_requests(server *s, ol_buf *rows)
{
    ol_request_stat *stats;
    int n = ol_engine_request_stats(s->engine, &stats);

    rows->failed |= n < 0;
    for (int i = 0; i < n; i++) {
        const tag_entry *e = tag_of_number(s->tags, stats[i].tag);

        stats[i].session = e ? e->session : 0;
        stats[i].tag = e ? e->tag : 0;
        ol_wire_put_request_stat(rows, &stats[i]);
    }
    free(stats);
}

static void tell_adapters(server *s, ol_buf *rows)
{
    ol_adapter_stat *stats;
    int n = ol_engine_adapter_stats(s->engine, &stats);

    rows->failed |= n < 0;
    for (int i = 0; i < n; i++)
        ol_wire_put_adapter_stat(rows, &stats[i]);
    free(stats);
}

static ol_code tell_stats(server *s, ol_reader *r, const ol_frame *frame, ol_error *err)
{
    ol_buf rows = {0};
    uint8_t which = ol_get_u8(r);
    ol_code code = OL_OK;

    if (r->bad || which > OL_STATS_RESET)
        return serve_malformed(frame, err);
    if (which == OL_STATS_REQUESTS)
        tell_requests(s, &rows);
    else if (which == OL_STATS_RESET)
        ol_engine_adapter_stats_reset(s->engine);
    else
        tell_adapters(s, &rows);
    if (rows.failed)
        code = ol_fail_nomem(err, rows.len, "statistics");
    else
        outbox_send_data(&s->out, frame, rows.data, rows.len);
    if (code == OL_OK)
        outbox_send(&s->out, frame, OL_FRAME_END);
    ol_buf_free(&rows);
    return code;
}

/* -- any of them ------------------------------------------------------------------------- */

ol_code serve_call(server *s, const tag_entry *e, ol_reader *r, const ol_frame *frame,
                   ol_error *err)
{
    switch (frame->type) {
    case OL_FRAME_TOKENIZE:
        return tokenize(s, e, r, frame, err);
    case OL_FRAME_DETOKENIZE:
        return detokenize(s, e, r, frame, err);
    default:
        return tell_stats(s, r, frame, err);
    }
}
