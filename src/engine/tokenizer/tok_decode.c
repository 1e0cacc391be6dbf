/* tok_decode.c: ids to text, whole and as a stream. */
#include "engine/tokenizer/tok_internal.h"

#include <string.h>

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

typedef enum step { STEP_BAD, STEP_MORE, STEP_DONE } step;

/* Whether n bytes begin a character (Unicode, table 3-7), and whether they are it. */
static step utf8_step(const uint8_t *p, size_t n)
{
    uint8_t lead = p[0], low = 0x80, high = 0xBF;
    size_t want;

    if (lead < 0x80)
        return STEP_DONE;
    if (lead < 0xC2 || lead > 0xF4)
        return STEP_BAD;
    want = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    if (lead == 0xE0)
        low = 0xA0;
    else if (lead == 0xED)
        high = 0x9F;
    else if (lead == 0xF0)
        low = 0x90;
    else if (lead == 0xF4)
        high = 0x8F;
    if (n > 1 && (p[1] < low || p[1] > high))
        return STEP_BAD;
    for (size_t i = 2; i < n; i++) {
        if ((p[i] & 0xC0) != 0x80)
            return STEP_BAD;
    }
    return n == want ? STEP_DONE : STEP_MORE;
}

static void put_byte(ol_detok *d, uint8_t byte, ol_buf *out)
{
    step s;

    d->held[d->n_held++] = byte;
    s = utf8_step(d->held, d->n_held);
    if (s == STEP_BAD && d->n_held > 1) { /* what was held is broken; begin again here */
        ol_buf_put(out, replacement, 3);
        d->held[0] = byte;
        d->n_held = 1;
        s = utf8_step(d->held, 1);
    }
    if (s == STEP_MORE)
        return;
    if (s == STEP_BAD)
        ol_buf_put(out, replacement, 3);
    else
        ol_buf_put(out, d->held, d->n_held);
    d->n_held = 0;
}

ol_detok ol_detok_begin(const ol_tokenizer *tok, unsigned flags)
{
    return (ol_detok){.tok = tok, .flags = flags};
}

/* Without checks of the id. */
static void push(ol_detok *d, int32_t id, ol_buf *out)
{
    const ol_tokenizer *tok = d->tok;
    ol_span text = tok->texts[id];
    uint8_t flags = tok->flags[id];

    if (!(flags & TOK_PRESENT) || ((flags & TOK_SPECIAL) && (d->flags & OL_DETOK_SKIP_SPECIAL)))
        return;
    if (text.len > 0 && !d->begun) {
        d->begun = true;
        if (tok->strip_left && !(d->flags & OL_DETOK_CONTINUE) && text.data[0] == ' ')
            text = tok_span(text.data + 1, text.len - 1);
    }
    if ((d->flags & OL_DETOK_RAW) || (d->n_held == 0 && (flags & TOK_UTF8))) {
        ol_buf_put(out, text.data, text.len);
        return;
    }
    for (size_t i = 0; i < text.len; i++)
        put_byte(d, (uint8_t)text.data[i], out);
}

static ol_code check_id(const ol_tokenizer *tok, int32_t id, ol_error *err)
{
    if (id >= 0 && id < tok->n_vocab)
        return OL_OK;
    return ol_fail(err, OL_INVALID, "token id %d is outside of the vocabulary (%d tokens)", id,
                   tok->n_vocab);
}

ol_code ol_detok_push(ol_detok *d, int32_t id, ol_buf *out, ol_error *err)
{
    OL_TRY(check_id(d->tok, id, err));
    push(d, id, out);
    return out->failed ? tok_nomem(err) : OL_OK;
}

ol_code ol_detok_end(ol_detok *d, ol_buf *out, ol_error *err)
{
    if (d->n_held > 0)
        ol_buf_put(out, replacement, 3);
    *d = ol_detok_begin(d->tok, d->flags);
    return out->failed ? tok_nomem(err) : OL_OK;
}

ol_code ol_detokenize(const ol_tokenizer *tok, const int32_t *ids, size_t n, unsigned flags,
                      ol_buf *out, ol_error *err)
{
    ol_detok d = ol_detok_begin(tok, flags);
    size_t before = out->len;
    ol_code code;

    for (size_t i = 0; i < n; i++)
        OL_TRY(check_id(tok, ids[i], err));
    for (size_t i = 0; i < n; i++)
        push(&d, ids[i], out);
    code = ol_detok_end(&d, out, err);
    if (code != OL_OK)
        out->len = before;
    return code;
}
