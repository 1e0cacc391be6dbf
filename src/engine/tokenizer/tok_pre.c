/* tok_pre.c: the pre-tokenizer stages: a text becomes pieces, which stages cut further
 * or rewrite. Pieces and texts alternate between two buffers each. */
#include "engine/tokenizer/tok_internal.h"

#include <string.h>

static void put_mapped(const uint8_t *p, size_t len, ol_buf *out)
{
    for (size_t i = 0; i < len; i++) {
        uint8_t utf8[4];

        ol_buf_put(out, utf8, tok_utf8_put(tok_byte_to_char(p[i]), utf8));
    }
}

/* Replaces spaces, prepends, and cuts before every replacement. */
static ol_code metaspace(tok_work *work, const tok_pre *pre, ol_span text, bool at_start,
                         ol_buf *out, tok_pieces *pieces)
{
    const ol_span *mark = &pre->replacement;
    size_t start = out->len, at;
    bool prepend = pre->prepend == TOK_PREPEND_ALWAYS ||
                   (pre->prepend == TOK_PREPEND_FIRST && work->first && at_start);
    bool has_mark =
        text.len > 0 && (text.data[0] == ' ' ||
                         (text.len >= mark->len && memcmp(text.data, mark->data, mark->len) == 0));

    if (prepend && !has_mark && !work->continued)
        ol_buf_put(out, mark->data, mark->len);
    for (size_t i = 0; i < text.len; i++) {
        if (text.data[i] == ' ')
            ol_buf_put(out, mark->data, mark->len);
        else
            ol_buf_put_u8(out, (uint8_t)text.data[i]);
    }
    if (out->failed)
        return tok_nomem(work->err);
    /* Of marks in a row only the last joins what follows; a text before the first mark
     * is a piece of its own. */
    for (at = start; pre->split && mark->len > 0;) {
        size_t left = out->len - at;
        size_t skip =
            left >= mark->len && memcmp(out->data + at, mark->data, mark->len) == 0 ? mark->len : 0;
        const uint8_t *next =
            left > skip ? memmem(out->data + at + skip, left - skip, mark->data, mark->len) : NULL;

        if (!next)
            break;
        OL_TRY(tok_push_piece(work, pieces, at, (size_t)(next - (out->data + at))));
        at = (size_t)(next - out->data);
    }
    return at < out->len ? tok_push_piece(work, pieces, at, out->len - at) : OL_OK;
}

/* Stages that write a new text. */
static ol_code rewrite(tok_work *work, const tok_pre *pre, ol_span base, const tok_pieces *in,
                       ol_buf *out, tok_pieces *pieces)
{
    for (size_t i = 0; i < in->n; i++) {
        ol_span text = tok_span(base.data + in->items[i].off, in->items[i].len);
        size_t start = out->len;

        if (pre->kind == TOK_PRE_METASPACE) {
            OL_TRY(metaspace(work, pre, text, in->items[i].off == 0, out, pieces));
            continue;
        }
        if (pre->kind == TOK_PRE_BYTE_MAP) {
            put_mapped((const uint8_t *)text.data, text.len, out);
        } else {
            if (text.len > 0 && text.data[0] != ' ' && !work->continued)
                ol_buf_put_u8(out, ' ');
            ol_buf_put(out, text.data, text.len);
        }
        if (!out->failed)
            OL_TRY(tok_push_piece(work, pieces, start, out->len - start));
    }
    return out->failed ? tok_nomem(work->err) : OL_OK;
}

/* Back from GPT-2's byte alphabet to bytes, piece by piece. */
static ol_code unmap(tok_work *work, ol_span base, const tok_pieces *in, ol_buf *out,
                     tok_pieces *pieces)
{
    ol_buf_reset(out);
    if (!ol_buf_reserve(out, base.len + 1))
        return tok_nomem(work->err);
    pieces->n = 0;
    for (size_t i = 0; i < in->n; i++) {
        ol_span text = tok_span(base.data + in->items[i].off, in->items[i].len);
        size_t n = 0;

        if (!tok_unmap_bytes(text, out->data + out->len, &n))
            return ol_fail(work->err, OL_INTERNAL, "a pre-tokenizer left the byte alphabet");
        OL_TRY(tok_push_piece(work, pieces, out->len, n));
        out->len += n;
    }
    return OL_OK;
}

ol_code tok_pretokenize(tok_work *work, ol_span text, ol_span *base, const tok_pieces **result)
{
    const ol_tokenizer *tok = work->tok;
    tok_pieces *in = &work->pieces[0], *out = &work->pieces[1], *swap;
    int side = 0;

    *base = text;
    in->n = 0;
    if (text.len > 0)
        OL_TRY(tok_push_piece(work, in, 0, text.len));
    for (int i = 0; i < tok->n_pres; i++) {
        const tok_pre *pre = &tok->pres[i];

        out->n = 0;
        if (pre->kind == TOK_PRE_SPLIT) {
            for (size_t k = 0; k < in->n; k++)
                OL_TRY(tok_split_piece(work, pre, *base, in->items[k], out));
        } else {
            ol_buf *made = &work->text[side];

            ol_buf_reset(made);
            OL_TRY(rewrite(work, pre, *base, in, made, out));
            if (made->len > 8 * OL_TOK_MAX_TEXT)
                return ol_fail(work->err, OL_LIMIT, "the pre-tokenized text is too long");
            *base = tok_span(made->data ? (const char *)made->data : "", made->len);
            side ^= 1;
        }
        swap = in, in = out, out = swap;
    }
    if (tok->byte_mapped) {
        OL_TRY(unmap(work, *base, in, &work->text[side], out));
        *base = tok_span(work->text[side].data, work->text[side].len);
        in = out;
    }
    *result = in;
    return OL_OK;
}
