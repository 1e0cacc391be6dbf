/* tok_build.c: making a tokenizer from whatever a loader found, and giving it back. */
#include "engine/tokenizer/tok_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

ol_code tok_new(ol_tokenizer **out, ol_error *err)
{
    ol_arena *arena = ol_arena_create();
    ol_tokenizer *tok = arena ? ol_arena_alloc(arena, sizeof(*tok)) : NULL;

    if (!tok) {
        ol_arena_destroy(arena);
        return tok_nomem(err);
    }
    tok->arena = arena;
    tok->bos = tok->eos = tok->unk = OL_NO_TOKEN;
    for (int i = 0; i < 256; i++)
        tok->byte_id[i] = OL_NO_TOKEN;
    for (int i = 0; i < 128; i++)
        tok->ascii_id[i] = OL_NO_TOKEN;
    *out = tok;
    return OL_OK;
}

void ol_tokenizer_free(ol_tokenizer *tok)
{
    if (!tok)
        return;
    tok_regex_free_all(tok);
    free(tok->added);
    free(tok->eog);
    ol_arena_destroy(tok->arena);
}

bool tok_keep(ol_tokenizer *tok, ol_span from, ol_span *to)
{
    char *copy = ol_arena_strndup(tok->arena, from.data ? from.data : "", from.len);

    *to = tok_span(copy, copy ? from.len : 0);
    return copy != NULL;
}

ol_code tok_vocab_alloc(ol_tokenizer *tok, size_t n, ol_error *err)
{
    if (n == 0)
        return ol_fail(err, OL_CORRUPT, "the vocabulary is empty");
    if (n > OL_TOK_MAX_VOCAB)
        return ol_fail(err, OL_LIMIT, "a vocabulary of %zu tokens is too large (limit %d)", n,
                       OL_TOK_MAX_VOCAB);
    tok->keys = ol_arena_array(tok->arena, n, sizeof(*tok->keys));
    tok->texts = ol_arena_array(tok->arena, n, sizeof(*tok->texts));
    tok->flags = ol_arena_array(tok->arena, n, sizeof(*tok->flags));
    if (!tok->keys || !tok->texts || !tok->flags)
        return tok_nomem(err);
    tok->n_vocab = (int32_t)n;
    return OL_OK;
}

ol_code tok_set(ol_tokenizer *tok, int32_t id, ol_span key, ol_span text, unsigned flags,
                ol_error *err)
{
    if (id < 0 || id >= tok->n_vocab)
        return ol_fail(err, OL_CORRUPT, "token id %d is outside of the vocabulary (%d tokens)", id,
                       tok->n_vocab);
    if (key.len > TOK_MAX_KEY || text.len > TOK_MAX_KEY)
        return ol_fail(err, OL_LIMIT, "token %d is too long (%zu bytes)", id, key.len);
    if (!tok_keep(tok, key, &tok->keys[id]))
        return tok_nomem(err);
    tok->texts[id] = tok->keys[id];
    if (text.data && !tok_keep(tok, text, &tok->texts[id]))
        return tok_nomem(err);
    tok->flags[id] = (uint8_t)(flags | TOK_PRESENT);
    return OL_OK;
}

ol_code tok_add_added(ol_tokenizer *tok, const tok_added *added, ol_error *err)
{
    tok_added copy = *added;
    void *items = tok->added;

    if (added->id < 0 || added->id >= tok->n_vocab)
        return ol_fail(err, OL_CORRUPT, "added token id %d is outside of the vocabulary",
                       added->id);
    if (added->content.len == 0)
        return OL_OK; /* never found in a text */
    if (added->content.len > TOK_MAX_LITERAL)
        return ol_fail(err, OL_LIMIT, "added token %d is too long (%zu bytes)", added->id,
                       added->content.len);
    if (!tok_grow(&items, &tok->cap_added, tok->n_added + 1, sizeof(*tok->added)))
        return tok_nomem(err);
    tok->added = items;
    if (!tok_keep(tok, added->content, &copy.content))
        return tok_nomem(err);
    tok->added[tok->n_added++] = copy;
    return OL_OK;
}

ol_code tok_add_eog(ol_tokenizer *tok, int32_t id, ol_error *err)
{
    void *items = tok->eog;
    size_t at = 0;

    if (id < 0 || id >= tok->n_vocab)
        return ol_fail(err, OL_INVALID, "end token id %d is outside of the vocabulary", id);
    while (at < tok->n_eog && tok->eog[at] < id)
        at++;
    if (at < tok->n_eog && tok->eog[at] == id)
        return OL_OK;
    if (!tok_grow(&items, &tok->cap_eog, tok->n_eog + 1, sizeof(*tok->eog)))
        return tok_nomem(err);
    tok->eog = items;
    memmove(tok->eog + at + 1, tok->eog + at, (tok->n_eog - at) * sizeof(*tok->eog));
    tok->eog[at] = id;
    tok->n_eog++;
    return OL_OK;
}

ol_code tok_add_norm(ol_tokenizer *tok, tok_norm norm, ol_error *err)
{
    if (tok->n_norms == TOK_MAX_STAGES)
        return ol_fail(err, OL_UNSUPPORTED, "more than %d normalizers", TOK_MAX_STAGES);
    if (!tok_keep(tok, norm.text, &norm.text) ||
        !tok_keep(tok, norm.pattern.literal, &norm.pattern.literal))
        return tok_nomem(err);
    if (norm.text.len > TOK_MAX_LITERAL)
        return ol_fail(err, OL_LIMIT, "a normalizer's text is too long");
    tok->norms[tok->n_norms++] = norm;
    return OL_OK;
}

ol_code tok_add_pre(ol_tokenizer *tok, tok_pre pre, ol_error *err)
{
    if (tok->n_pres == TOK_MAX_STAGES)
        return ol_fail(err, OL_UNSUPPORTED, "more than %d pre-tokenizers", TOK_MAX_STAGES);
    if (!tok_keep(tok, pre.replacement, &pre.replacement) ||
        !tok_keep(tok, pre.pattern.literal, &pre.pattern.literal))
        return tok_nomem(err);
    tok->pres[tok->n_pres++] = pre;
    return OL_OK;
}

ol_code tok_add_split(ol_tokenizer *tok, const char *pattern, ol_error *err)
{
    tok_pre pre = {.kind = TOK_PRE_SPLIT, .behaviour = TOK_ISOLATED};

    OL_TRY(tok_regex_compile(tok, pattern, strlen(pattern), &pre.pattern.regex, err));
    return tok_add_pre(tok, pre, err);
}

ol_code tok_add_spm_norms(ol_tokenizer *tok, bool collapse, bool prefix, ol_error *err)
{
    tok_norm norm = {.kind = TOK_NORM_COLLAPSE};

    if (collapse)
        OL_TRY(tok_add_norm(tok, norm, err));
    norm.text = tok_span(TOK_MARK, 3);
    if (prefix) {
        norm.kind = TOK_NORM_PREPEND;
        OL_TRY(tok_add_norm(tok, norm, err));
        tok->strip_left = 1;
    }
    norm.kind = TOK_NORM_REPLACE;
    norm.pattern.literal = tok_span(" ", 1);
    return tok_add_norm(tok, norm, err);
}

typedef struct scored {
    float score;
    int32_t id;
} scored;

static int by_score(const void *a, const void *b)
{
    const scored *x = a, *y = b;

    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

ol_code tok_rank_scores(ol_tokenizer *tok, const float *scores, ol_error *err)
{
    size_t n = (size_t)tok->n_vocab;
    scored *order = malloc(n * sizeof(*order));
    uint32_t rank = 0;

    tok->ranks = ol_arena_array(tok->arena, n, sizeof(*tok->ranks));
    if (!order || !tok->ranks) {
        free(order);
        return tok_nomem(err);
    }
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(scores[i])) {
            free(order);
            return ol_fail(err, OL_CORRUPT, "the score of token %zu is not a finite number", i);
        }
        order[i] = (scored){scores[i], (int32_t)i};
    }
    qsort(order, n, sizeof(*order), by_score);
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && order[i].score != order[i - 1].score)
            rank++;
        tok->ranks[order[i].id] = rank;
    }
    free(order);
    return OL_OK;
}
