/* tok_split.c: cutting one piece at the matches of a pattern. */
#include "engine/tokenizer/tok_internal.h"

#include <string.h>

static tok_match find_literal(ol_span literal, ol_span text, size_t from)
{
    const char *at;
    size_t start;

    if (literal.len == 0 || from >= text.len)
        return (tok_match){0};
    at = memmem(text.data + from, text.len - from, literal.data, literal.len);
    if (!at)
        return (tok_match){0};
    start = (size_t)(at - text.data);
    return (tok_match){.found = true, .start = start, .end = start + literal.len};
}

ol_code tok_pattern_next(const tok_pattern *pattern, tok_work *work, ol_span text, size_t from,
                         tok_match *match)
{
    if (pattern->regex)
        return tok_regex_next(pattern->regex, work->matcher, text, from, match, work->err);
    *match = find_literal(pattern->literal, text, from);
    return OL_OK;
}

/* Records [off, off + len) as a cut, or as a piece when nothing is to be decided. */
static ol_code add_cut(tok_work *work, size_t off, size_t len, bool match)
{
    size_t n = work->cuts.n;

    if (len == 0)
        return OL_OK;
    if (n == work->is_match_cap) {
        void *items = work->is_match;

        if (!tok_grow(&items, &work->is_match_cap, n + 1, 1))
            return tok_nomem(work->err);
        work->is_match = items;
    }
    work->is_match[n] = match;
    return tok_push_piece(work, &work->cuts, off, len);
}

static ol_code find_cuts(tok_work *work, const tok_pre *pre, ol_span base, tok_piece piece)
{
    ol_span text = tok_span(base.data + piece.off, piece.len);
    size_t at = 0;

    work->cuts.n = 0;
    while (at < text.len) {
        tok_match m;

        OL_TRY(tok_pattern_next(&pre->pattern, work, text, at, &m));
        if (!m.found)
            m.start = m.end = text.len;
        OL_TRY(add_cut(work, piece.off + at, m.start - at, pre->invert));
        OL_TRY(add_cut(work, piece.off + m.start, m.end - m.start, !pre->invert));
        at = m.end;
    }
    return OL_OK;
}

/* Joins cuts [from, to), which lie side by side, into one piece. */
static ol_code push_joined(tok_work *work, tok_pieces *out, size_t from, size_t to)
{
    const tok_piece *first = &work->cuts.items[from], *last = &work->cuts.items[to - 1];

    return tok_push_piece(work, out, first->off, last->off + last->len - first->off);
}

static ol_code push_cuts(tok_work *work, const tok_pre *pre, tok_pieces *out)
{
    const uint8_t *match = work->is_match;
    size_t n = work->cuts.n;

    for (size_t i = 0, next; i < n; i = next) {
        next = i + 1;
        switch (pre->behaviour) {
        case TOK_ISOLATED:
            break;
        case TOK_REMOVED:
            if (match[i])
                continue;
            break;
        case TOK_CONTIGUOUS:
            while (next < n && match[next] == match[i])
                next++;
            break;
        case TOK_MERGED_WITH_PREVIOUS:
            if (!match[i] && next < n && match[next])
                next++;
            break;
        case TOK_MERGED_WITH_NEXT:
            if (match[i] && next < n && !match[next])
                next++;
            break;
        }
        OL_TRY(push_joined(work, out, i, next));
    }
    return OL_OK;
}

/* The common case, without cuts. */
static ol_code push_isolated(tok_work *work, const tok_pre *pre, ol_span base, tok_piece piece,
                             tok_pieces *out)
{
    ol_span text = tok_span(base.data + piece.off, piece.len);
    size_t at = 0;

    while (at < text.len) {
        tok_match m;

        OL_TRY(tok_pattern_next(&pre->pattern, work, text, at, &m));
        if (!m.found)
            return tok_push_piece(work, out, piece.off + at, text.len - at);
        if (m.start > at)
            OL_TRY(tok_push_piece(work, out, piece.off + at, m.start - at));
        OL_TRY(tok_push_piece(work, out, piece.off + m.start, m.end - m.start));
        at = m.end;
    }
    return OL_OK;
}

ol_code tok_split_piece(tok_work *work, const tok_pre *pre, ol_span base, tok_piece piece,
                        tok_pieces *out)
{
    if (pre->behaviour == TOK_ISOLATED)
        return push_isolated(work, pre, base, piece, out);
    OL_TRY(find_cuts(work, pre, base, piece));
    return push_cuts(work, pre, out);
}
