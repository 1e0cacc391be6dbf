/*
 * tok_bpe.c: byte pair encoding of one piece.
 *
 * The rule: of all neighbours that can merge, the pair of the lowest rank merges
 * first, of equal ranks the leftmost. Symbols are a doubly linked list in an array,
 * candidates a binary heap; a candidate whose symbols have changed since is known by
 * its size and dropped. Every merge makes one symbol fewer and at most two candidates,
 * so a piece of n symbols takes O(n log n) whatever it holds. Short pieces, nearly all
 * there are, are quicker by looking through all neighbours each time.
 *
 * Where ranks belong to pairs (TOK_BPE_MERGES) a symbol is its id. Where they belong
 * to texts (TOK_BPE_RANKS) it is its bytes, so that two symbols may merge which are
 * no tokens themselves.
 */
#include "engine/tokenizer/tok_internal.h"

#include <stdlib.h>
#include <string.h>

#define SHORT_PIECE 24
#define NO_RANK UINT32_MAX

typedef struct tok_symbol {
    uint32_t off, len; /* len 0: merged into its left neighbour */
    int32_t id;        /* OL_NO_TOKEN: no token (yet) */
    int32_t prev, next;
} tok_symbol;

typedef struct tok_pair {
    uint32_t rank;
    int32_t left;
    int32_t id;    /* of the merged symbol */
    uint32_t size; /* in bytes, when it was found */
} tok_pair;

ol_code tok_push_id(tok_work *work, int32_t id)
{
    ol_ids *out = work->out;

    if (out->n == out->cap) {
        void *items = out->ids;

        if (!tok_grow(&items, &out->cap, out->n + 1, sizeof(*out->ids)))
            return tok_nomem(work->err);
        out->ids = items;
    }
    out->ids[out->n++] = id;
    return OL_OK;
}

/* The rank of two neighbours, or NO_RANK. */
static uint32_t pair_rank(const ol_tokenizer *tok, const uint8_t *piece, const tok_symbol *left,
                          const tok_symbol *right, int32_t *id)
{
    if (tok->bpe == TOK_BPE_MERGES) {
        const tok_merge *merge = tok_merges_find(&tok->merges, left->id, right->id);

        if (!merge)
            return NO_RANK;
        *id = merge->id;
        return merge->rank;
    }
    if ((size_t)left->len + right->len > tok->max_key)
        return NO_RANK;
    *id = tok_map_find(&tok->map, piece + left->off, (size_t)left->len + right->len);
    return *id == OL_NO_TOKEN ? NO_RANK : tok->ranks[*id];
}

/* ------------------------------------------------------------------------- symbols */

static ol_code add_symbol(tok_work *work, size_t *n, size_t off, size_t len, int32_t id)
{
    tok_symbol *s;

    if (*n == work->cap_symbols) {
        void *items = work->symbols;

        if (!tok_grow(&items, &work->cap_symbols, *n + 1, sizeof(*work->symbols)))
            return tok_nomem(work->err);
        work->symbols = items;
    }
    s = &work->symbols[*n];
    *s = (tok_symbol){(uint32_t)off, (uint32_t)len, id, (int32_t)*n - 1, (int32_t)*n + 1};
    (*n)++;
    return OL_OK;
}

static bool has_byte_tokens(const ol_tokenizer *tok, const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (tok->byte_id[p[i]] == OL_NO_TOKEN)
            return false;
    }
    return tok->byte_fallback;
}

/* A character that is no token, in Hugging Face's order of things: bytes, unk, nothing. */
static ol_code add_unknown(tok_work *work, const uint8_t *piece, size_t *n, size_t off, size_t len,
                           bool after_unk)
{
    const ol_tokenizer *tok = work->tok;

    if (has_byte_tokens(tok, piece + off, len)) {
        for (size_t i = 0; i < len; i++)
            OL_TRY(add_symbol(work, n, off + i, 1, tok->byte_id[piece[off + i]]));
        return OL_OK;
    }
    if (tok->unk == OL_NO_TOKEN)
        return OL_OK;
    if (tok->fuse_unk && after_unk) {
        work->symbols[*n - 1].len += (uint32_t)len;
        return OL_OK;
    }
    return add_symbol(work, n, off, len, tok->unk);
}

static ol_code byte_symbols(tok_work *work, const uint8_t *piece, size_t len, size_t *n)
{
    bool after_unk = false;

    for (size_t i = 0; i < len; i++) {
        int32_t id = work->tok->byte_id[piece[i]];

        if (id != OL_NO_TOKEN || work->tok->bpe == TOK_BPE_RANKS) {
            OL_TRY(add_symbol(work, n, i, 1, id));
            after_unk = false;
            continue;
        }
        OL_TRY(add_unknown(work, piece, n, i, 1, after_unk));
        after_unk = *n > 0 && work->symbols[*n - 1].id == work->tok->unk;
    }
    return OL_OK;
}

static ol_code char_symbols(tok_work *work, const uint8_t *piece, size_t len, size_t *n)
{
    const ol_tokenizer *tok = work->tok;
    bool after_unk = false;

    for (size_t at = 0, step; at < len; at += step) {
        uint32_t cp = 0;
        int32_t id;

        step = tok_utf8_char(piece + at, len - at, &cp);
        if (step == 0)
            step = 1; /* not reached: stages get valid UTF-8 */
        id = cp < 128 ? tok->ascii_id[cp] : tok_map_find(&tok->map, piece + at, step);
        if (id != OL_NO_TOKEN || !tok->early_fallback) {
            OL_TRY(add_symbol(work, n, at, step, id));
            after_unk = false;
            continue;
        }
        OL_TRY(add_unknown(work, piece, n, at, step, after_unk));
        after_unk = *n > 0 && tok->unk != OL_NO_TOKEN && work->symbols[*n - 1].id == tok->unk;
    }
    return OL_OK;
}

/* ------------------------------------------------------------------------- merging */

static bool pair_less(const tok_pair *a, const tok_pair *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static ol_code heap_push(tok_work *work, tok_pair pair)
{
    size_t at = work->n_heap;

    if (at == work->cap_heap) {
        void *items = work->heap;

        if (!tok_grow(&items, &work->cap_heap, at + 1, sizeof(*work->heap)))
            return tok_nomem(work->err);
        work->heap = items;
    }
    work->n_heap++;
    work->n_candidates++;
    for (; at > 0; at = (at - 1) / 2) {
        if (!pair_less(&pair, &work->heap[(at - 1) / 2]))
            break;
        work->heap[at] = work->heap[(at - 1) / 2];
    }
    work->heap[at] = pair;
    return OL_OK;
}

static tok_pair heap_pop(tok_work *work)
{
    tok_pair top = work->heap[0], last = work->heap[--work->n_heap];
    size_t at = 0, child;

    while ((child = 2 * at + 1) < work->n_heap) {
        if (child + 1 < work->n_heap && pair_less(&work->heap[child + 1], &work->heap[child]))
            child++;
        if (!pair_less(&work->heap[child], &last))
            break;
        work->heap[at] = work->heap[child];
        at = child;
    }
    work->heap[at] = last;
    return top;
}

static ol_code consider(tok_work *work, const uint8_t *piece, int32_t left)
{
    tok_symbol *a, *b;
    tok_pair pair = {.left = left};

    if (left < 0 || work->symbols[left].next < 0)
        return OL_OK;
    a = &work->symbols[left];
    b = &work->symbols[a->next];
    pair.rank = pair_rank(work->tok, piece, a, b, &pair.id);
    pair.size = a->len + b->len;
    return pair.rank == NO_RANK ? OL_OK : heap_push(work, pair);
}

static ol_code merge_long(tok_work *work, const uint8_t *piece, size_t n)
{
    work->n_heap = 0;
    for (size_t i = 0; i + 1 < n; i++)
        OL_TRY(consider(work, piece, (int32_t)i));
    while (work->n_heap > 0) {
        tok_pair pair = heap_pop(work);
        tok_symbol *a = &work->symbols[pair.left], *b;

        if (a->len == 0 || a->next < 0)
            continue;
        b = &work->symbols[a->next];
        if (a->len + b->len != pair.size)
            continue;
        a->len = pair.size;
        a->id = pair.id;
        a->next = b->next;
        b->len = 0;
        if (a->next >= 0)
            work->symbols[a->next].prev = pair.left;
        OL_TRY(consider(work, piece, a->prev));
        OL_TRY(consider(work, piece, pair.left));
    }
    return OL_OK;
}

/* The same without a list: symbols close up after each merge. */
static size_t merge_short(tok_work *work, const uint8_t *piece, size_t n)
{
    tok_symbol *s = work->symbols;
    uint32_t ranks[SHORT_PIECE];
    int32_t ids[SHORT_PIECE];

    for (size_t i = 0; i + 1 < n; i++)
        ranks[i] = pair_rank(work->tok, piece, &s[i], &s[i + 1], &ids[i]);
    while (n > 1) {
        size_t best = 0;

        for (size_t i = 1; i + 1 < n; i++) {
            if (ranks[i] < ranks[best])
                best = i;
        }
        if (ranks[best] == NO_RANK)
            break;
        s[best].len += s[best + 1].len;
        s[best].id = ids[best];
        n--;
        memmove(s + best + 1, s + best + 2, (n - best - 1) * sizeof(*s));
        memmove(ranks + best + 1, ranks + best + 2, (n - best - 1) * sizeof(*ranks));
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof(*ids));
        if (best > 0)
            ranks[best - 1] = pair_rank(work->tok, piece, &s[best - 1], &s[best], &ids[best - 1]);
        if (best + 1 < n)
            ranks[best] = pair_rank(work->tok, piece, &s[best], &s[best + 1], &ids[best]);
    }
    for (size_t i = 0; i < n; i++)
        s[i].next = (int32_t)i + 1;
    s[n - 1].next = -1;
    return n;
}

/* ------------------------------------------------------------------------- output */

static ol_code put_unknown(tok_work *work, const uint8_t *p, size_t len, bool *after_unk)
{
    const ol_tokenizer *tok = work->tok;

    if (has_byte_tokens(tok, p, len)) {
        for (size_t i = 0; i < len; i++)
            OL_TRY(tok_push_id(work, tok->byte_id[p[i]]));
        *after_unk = false;
        return OL_OK;
    }
    if (tok->unk != OL_NO_TOKEN && !(*after_unk && tok->fuse_unk))
        OL_TRY(tok_push_id(work, tok->unk));
    *after_unk = true;
    return OL_OK;
}

static ol_code put_symbols(tok_work *work, const uint8_t *piece, size_t n)
{
    bool after_unk = false;

    if (n == 0)
        return OL_OK;
    for (int32_t i = 0; i >= 0; i = work->symbols[i].next) {
        const tok_symbol *s = &work->symbols[i];

        if (s->id != OL_NO_TOKEN) {
            OL_TRY(tok_push_id(work, s->id));
            after_unk = false;
        } else {
            OL_TRY(put_unknown(work, piece + s->off, s->len, &after_unk));
        }
    }
    return OL_OK;
}

static ol_code merge_and_put(tok_work *work, const uint8_t *piece, size_t n)
{
    if (n == 0)
        return OL_OK;
    work->symbols[n - 1].next = -1;
    if (n <= SHORT_PIECE)
        n = merge_short(work, piece, n);
    else
        OL_TRY(merge_long(work, piece, n));
    return put_symbols(work, piece, n);
}

static ol_code encode_chars(tok_work *work, const uint8_t *piece, size_t len)
{
    size_t n = 0;

    OL_TRY(char_symbols(work, piece, len, &n));
    return merge_and_put(work, piece, n);
}

/* Word by word: the same ids, see words_apart. */
static ol_code encode_words(tok_work *work, const uint8_t *piece, size_t len)
{
    size_t start = 0;

    for (size_t at = 1; at < len; at++) {
        if (!tok_word_starts(piece, len, at))
            continue;
        OL_TRY(encode_chars(work, piece + start, at - start));
        start = at;
    }
    return encode_chars(work, piece + start, len - start);
}

ol_code tok_bpe(tok_work *work, const uint8_t *piece, size_t len)
{
    const ol_tokenizer *tok = work->tok;
    size_t n = 0;

    if (tok->whole_words && len <= tok->max_key) {
        int32_t id = tok_map_find(&tok->map, piece, len);

        if (id != OL_NO_TOKEN)
            return tok_push_id(work, id);
    }
    if (!tok->byte_level)
        return tok->words_apart ? encode_words(work, piece, len) : encode_chars(work, piece, len);
    OL_TRY(byte_symbols(work, piece, len, &n));
    return merge_and_put(work, piece, n);
}

ol_code tok_bpe_bytes(tok_work *work, const uint8_t *bytes, size_t len)
{
    bool after_unk = false;
    size_t n = 0;

    if (work->tok->byte_level) {
        OL_TRY(byte_symbols(work, bytes, len, &n));
        return merge_and_put(work, bytes, n);
    }
    for (size_t i = 0; i < len; i++)
        OL_TRY(put_unknown(work, bytes + i, 1, &after_unk));
    return OL_OK;
}
