/* tok_norm.c: the normalizers, one after the other, between two buffers. */
#include "engine/tokenizer/tok_internal.h"

#include <string.h>
#include <utf8proc.h>

static ol_code replace(tok_work *work, const tok_norm *norm, ol_span in, ol_buf *out)
{
    size_t at = 0;

    for (;;) {
        tok_match m;

        OL_TRY(tok_pattern_next(&norm->pattern, work, in, at, &m));
        if (!m.found)
            break;
        ol_buf_put(out, in.data + at, m.start - at);
        ol_buf_put(out, norm->text.data, norm->text.len);
        at = m.end;
    }
    ol_buf_put(out, in.data + at, in.len - at);
    return OL_OK;
}

static void lowercase(ol_span in, ol_buf *out)
{
    const uint8_t *p = (const uint8_t *)in.data;

    for (size_t at = 0; at < in.len;) {
        uint32_t cp = 0;
        size_t n = tok_utf8_char(p + at, in.len - at, &cp);
        uint8_t utf8[4];

        if (n == 0)
            return; /* not reached: stages get valid UTF-8 */
        at += n;
        if (cp == 0x130) { /* the only one that becomes two characters */
            ol_buf_put(out, "i\xCC\x87", 3);
            continue;
        }
        cp = (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp);
        ol_buf_put(out, utf8, tok_utf8_put(cp, utf8));
    }
}

static ol_span strip(ol_span in, bool left, bool right)
{
    const uint8_t *p = (const uint8_t *)in.data;
    size_t start = 0, end = in.len, n;
    uint32_t cp;

    while (left && (n = tok_utf8_char(p + start, end - start, &cp)) > 0 && tok_is_space(cp))
        start += n;
    while (right && end > start) {
        size_t at = end - 1;

        while (at > start && (p[at] & 0xC0) == 0x80)
            at--;
        if (tok_utf8_char(p + at, end - at, &cp) == 0 || !tok_is_space(cp))
            break;
        end = at;
    }
    return tok_span(in.data + start, end - start);
}

static void collapse(ol_span in, ol_buf *out)
{
    bool pending = false, begun = false;

    for (size_t i = 0; i < in.len; i++) {
        if (in.data[i] == ' ') {
            pending = begun;
            continue;
        }
        if (pending)
            ol_buf_put_u8(out, ' ');
        ol_buf_put_u8(out, (uint8_t)in.data[i]);
        pending = false;
        begun = true;
    }
}

static ol_code apply(tok_work *work, const tok_norm *norm, ol_span in, ol_buf *out)
{
    switch (norm->kind) {
    case TOK_NORM_NFC:
    case TOK_NORM_NFD:
    case TOK_NORM_NFKC:
    case TOK_NORM_NFKD:
        return tok_normal_form(work, norm->kind, in, out);
    case TOK_NORM_LOWERCASE:
        lowercase(in, out);
        return OL_OK;
    case TOK_NORM_PREPEND:
        ol_buf_put(out, norm->text.data, in.len > 0 && !work->continued ? norm->text.len : 0);
        ol_buf_put(out, in.data, in.len);
        return OL_OK;
    case TOK_NORM_REPLACE:
        return replace(work, norm, in, out);
    case TOK_NORM_STRIP:
        in = strip(in, norm->left, norm->right);
        ol_buf_put(out, in.data, in.len);
        return OL_OK;
    case TOK_NORM_COLLAPSE:
        collapse(in, out);
        return OL_OK;
    }
    return OL_OK;
}

ol_code tok_normalize(tok_work *work, ol_span *text)
{
    const ol_tokenizer *tok = work->tok;

    for (int i = 0; i < tok->n_norms; i++) {
        ol_buf *out = &work->norm[i & 1];

        ol_buf_reset(out);
        OL_TRY(apply(work, &tok->norms[i], *text, out));
        if (out->failed)
            return tok_nomem(work->err);
        /* A replacement may make a text longer at every step. */
        if (out->len > 4 * OL_TOK_MAX_TEXT)
            return ol_fail(work->err, OL_LIMIT, "the normalized text is too long");
        *text = tok_span(out->data ? (const char *)out->data : "", out->len);
    }
    return OL_OK;
}
