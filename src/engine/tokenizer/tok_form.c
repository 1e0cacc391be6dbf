/*
 * tok_form.c: Unicode normal forms. The character data are utf8proc's; reordering is
 * ours, because utf8proc's is quadratic in the number of marks on one letter, which
 * the author of a text chooses.
 */
#include "engine/tokenizer/tok_internal.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* Longest decomposition of one character is 18 (U+FDFA). */
#define MAX_DECOMPOSITION 32
#define SHORT_RUN 24

static unsigned class_of(int32_t cp)
{
    return (unsigned)utf8proc_get_property(cp)->combining_class;
}

/* Whether all characters are below U+0300, none of which NFC touches. */
static bool is_plainly_nfc(ol_span in)
{
    for (size_t i = 0; i < in.len; i++) {
        if ((uint8_t)in.data[i] >= 0xCC)
            return false;
    }
    return true;
}

static bool is_ascii(ol_span in)
{
    for (size_t i = 0; i < in.len; i++) {
        if ((uint8_t)in.data[i] >= 0x80)
            return false;
    }
    return true;
}

/* Stable order by combining class; all classes are above 0. */
static bool sort_run(int32_t *cps, size_t n)
{
    size_t at[257] = {0};
    int32_t *copy;

    if (n <= SHORT_RUN) {
        for (size_t i = 1; i < n; i++) {
            int32_t cp = cps[i];
            unsigned class = class_of(cp);
            size_t k = i;

            for (; k > 0 && class_of(cps[k - 1]) > class; k--)
                cps[k] = cps[k - 1];
            cps[k] = cp;
        }
        return true;
    }
    if (!(copy = malloc(n * sizeof(*copy))))
        return false;
    memcpy(copy, cps, n * sizeof(*copy));
    for (size_t i = 0; i < n; i++)
        at[(class_of(copy[i]) & 255) + 1]++;
    for (size_t c = 1; c < 257; c++)
        at[c] += at[c - 1];
    for (size_t i = 0; i < n; i++)
        cps[at[class_of(copy[i]) & 255]++] = copy[i];
    free(copy);
    return true;
}

static bool reorder(int32_t *cps, size_t n)
{
    size_t start = 0;

    for (size_t i = 0; i <= n; i++) {
        if (i < n && class_of(cps[i]) != 0)
            continue;
        if (i - start > 1 && !sort_run(cps + start, i - start))
            return false;
        start = i + 1;
    }
    return true;
}

static ol_code decompose(tok_work *work, ol_span in, utf8proc_option_t options, size_t *n_out)
{
    const uint8_t *p = (const uint8_t *)in.data;
    size_t n = 0;

    for (size_t at = 0; at < in.len;) {
        uint32_t cp = 0;
        size_t len = tok_utf8_char(p + at, in.len - at, &cp);
        void *items = work->cps;
        int boundary = 0;
        utf8proc_ssize_t made;

        if (!tok_grow(&items, &work->cap_cps, n + MAX_DECOMPOSITION, sizeof(*work->cps)))
            return tok_nomem(work->err);
        work->cps = items;
        made = len ? utf8proc_decompose_char((utf8proc_int32_t)cp, work->cps + n, MAX_DECOMPOSITION,
                                             options, &boundary)
                   : -1;
        if (made < 0 || made > MAX_DECOMPOSITION)
            return ol_fail(work->err, OL_INTERNAL, "cannot normalize U+%04X", cp);
        n += (size_t)made;
        at += len;
    }
    *n_out = n;
    return OL_OK;
}

ol_code tok_normal_form(tok_work *work, tok_norm_kind form, ol_span in, ol_buf *out)
{
    bool compose = form == TOK_NORM_NFC || form == TOK_NORM_NFKC;
    bool compat = form == TOK_NORM_NFKC || form == TOK_NORM_NFKD;
    int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0);
    utf8proc_ssize_t made;
    size_t n = 0;

    if (form == TOK_NORM_NFC ? is_plainly_nfc(in) : is_ascii(in)) {
        ol_buf_put(out, in.data, in.len);
        return OL_OK;
    }
    OL_TRY(decompose(work, in, (utf8proc_option_t)options, &n));
    if (!reorder(work->cps, n))
        return tok_nomem(work->err);
    if (compose) {
        made = utf8proc_normalize_utf32(work->cps, (utf8proc_ssize_t)n,
                                        UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        if (made < 0)
            return ol_fail(work->err, OL_INTERNAL, "cannot compose a text of %zu characters", n);
        n = (size_t)made;
    }
    for (size_t i = 0; i < n; i++) {
        uint8_t utf8[4];

        ol_buf_put(out, utf8, tok_utf8_put((uint32_t)work->cps[i], utf8));
    }
    return OL_OK;
}
