/* tokenizer.c: the encoding call, and facts about a tokenizer. */
#include "engine/tokenizer/tok_internal.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------- encode */

void ol_ids_free(ol_ids *ids)
{
    free(ids->ids);
    memset(ids, 0, sizeof(*ids));
}

void tok_work_free(tok_work *work)
{
    tok_matcher_free(work->matcher);
    for (int i = 0; i < 2; i++) {
        ol_buf_free(&work->norm[i]);
        ol_buf_free(&work->text[i]);
        free(work->pieces[i].items);
    }
    free(work->cuts.items);
    free(work->is_match);
    free(work->symbols);
    free(work->heap);
    free(work->cps);
}

/* Normalized text that holds no added token. */
static ol_code encode_plain(tok_work *work, ol_span text)
{
    const tok_pieces *pieces = NULL;
    ol_span base;

    OL_TRY(tok_pretokenize(work, text, &base, &pieces));
    for (size_t i = 0; i < pieces->n; i++)
        OL_TRY(
            tok_bpe(work, (const uint8_t *)base.data + pieces->items[i].off, pieces->items[i].len));
    return OL_OK;
}

/* Text without raw added tokens: normalize, then look for the normalized ones. */
static ol_code encode_segment(tok_work *work, ol_span text)
{
    const tok_added *added;
    tok_match m;
    size_t at = 0;

    OL_TRY(tok_normalize(work, &text));
    while ((added = tok_added_next(work, &work->tok->norm_trie, text, at, &m)) != NULL) {
        if (m.start > at)
            OL_TRY(encode_plain(work, tok_span(text.data + at, m.start - at)));
        OL_TRY(tok_push_id(work, added->id));
        at = m.end;
        work->first = false;
    }
    if (at == text.len)
        return OL_OK;
    return encode_plain(work, tok_span(text.data + at, text.len - at));
}

/* Valid UTF-8: cut at added tokens. */
static ol_code encode_valid(tok_work *work, ol_span text)
{
    const tok_added *added;
    tok_match m;
    size_t at = 0;

    while ((added = tok_added_next(work, &work->tok->raw_trie, text, at, &m)) != NULL) {
        if (m.start > at)
            OL_TRY(encode_segment(work, tok_span(text.data + at, m.start - at)));
        OL_TRY(tok_push_id(work, added->id));
        at = m.end;
        work->first = work->continued = false;
    }
    if (at < text.len)
        OL_TRY(encode_segment(work, tok_span(text.data + at, text.len - at)));
    return OL_OK;
}

static ol_code encode_text(tok_work *work, const uint8_t *text, size_t len)
{
    for (size_t at = 0; at < len;) {
        size_t valid = tok_utf8_valid(text + at, len - at), bad = 0;

        if (valid > 0)
            OL_TRY(encode_valid(work, tok_span(text + at, valid)));
        at += valid;
        while (at + bad < len &&
               tok_utf8_valid(text + at + bad, len - at - bad > 4 ? 4 : len - at - bad) == 0)
            bad++;
        if (bad > 0)
            OL_TRY(tok_bpe_bytes(work, text + at, bad));
        at += bad;
        work->first = false;
        work->continued = true;
    }
    return OL_OK;
}

static ol_code encode(tok_work *work, const char *text, size_t len)
{
    const ol_tokenizer *tok = work->tok;
    unsigned flags = work->flags;
    bool defaults = (flags & OL_TOK_ADD_DEFAULTS) != 0;

    if (tok->bos != OL_NO_TOKEN && ((flags & OL_TOK_ADD_BOS) || (defaults && tok->add_bos)))
        OL_TRY(tok_push_id(work, tok->bos));
    work->first = true;
    work->continued = (flags & OL_TOK_CONTINUE) != 0;
    OL_TRY(encode_text(work, (const uint8_t *)text, len));
    if (tok->eos != OL_NO_TOKEN && ((flags & OL_TOK_ADD_EOS) || (defaults && tok->add_eos)))
        OL_TRY(tok_push_id(work, tok->eos));
    return OL_OK;
}

ol_code ol_tokenize(const ol_tokenizer *tok, const char *text, size_t len, unsigned flags,
                    ol_ids *out, ol_error *err)
{
    tok_work work = {.tok = tok, .out = out, .err = err, .flags = flags};
    size_t before = out->n;
    ol_code code;

    if (len > OL_TOK_MAX_TEXT) {
        ol_fail(err, OL_LIMIT, "a text of %zu bytes is too long to tokenize", len);
        return ol_detail(err, "The limit is %zu bytes.", OL_TOK_MAX_TEXT);
    }
    if (!(work.matcher = tok_matcher_new()))
        return tok_nomem(err);
    code = encode(&work, text, len);
    if (code != OL_OK)
        out->n = before;
    tok_work_free(&work);
    return code;
}

/* -------------------------------------------------------------------- facts */

int32_t ol_tokenizer_vocab_size(const ol_tokenizer *tok)
{
    return tok->n_vocab;
}

int32_t ol_tokenizer_bos(const ol_tokenizer *tok)
{
    return tok->bos;
}

int32_t ol_tokenizer_eos(const ol_tokenizer *tok)
{
    return tok->eos;
}

int32_t ol_tokenizer_unk(const ol_tokenizer *tok)
{
    return tok->unk;
}

bool ol_tokenizer_adds_bos(const ol_tokenizer *tok)
{
    return tok->add_bos && tok->bos != OL_NO_TOKEN;
}

bool ol_tokenizer_adds_eos(const ol_tokenizer *tok)
{
    return tok->add_eos && tok->eos != OL_NO_TOKEN;
}

const int32_t *ol_tokenizer_eog(const ol_tokenizer *tok, size_t *n)
{
    *n = tok->n_eog;
    return tok->eog;
}

bool ol_tokenizer_is_eog(const ol_tokenizer *tok, int32_t id)
{
    for (size_t i = 0; i < tok->n_eog; i++) {
        if (tok->eog[i] == id)
            return true;
    }
    return false;
}

ol_code ol_tokenizer_add_eog(ol_tokenizer *tok, int32_t id, ol_error *err)
{
    return tok_add_eog(tok, id, err);
}

static bool is_present(const ol_tokenizer *tok, int32_t id)
{
    return id >= 0 && id < tok->n_vocab && (tok->flags[id] & TOK_PRESENT);
}

bool ol_tokenizer_text(const ol_tokenizer *tok, int32_t id, ol_span *text)
{
    if (!is_present(tok, id))
        return false;
    *text = tok->texts[id];
    return true;
}

int32_t ol_tokenizer_find(const ol_tokenizer *tok, const char *text, size_t len)
{
    for (size_t i = 0; i < tok->n_added; i++) {
        const ol_span *content = &tok->added[i].content;

        if (content->len == len && memcmp(content->data, text, len) == 0)
            return tok->added[i].id;
    }
    for (int32_t id = 0; id < tok->n_vocab; id++) {
        if (is_present(tok, id) && tok->texts[id].len == len &&
            memcmp(tok->texts[id].data, text, len) == 0)
            return id;
    }
    return OL_NO_TOKEN;
}

bool ol_tokenizer_is_special(const ol_tokenizer *tok, int32_t id)
{
    return is_present(tok, id) && (tok->flags[id] & TOK_SPECIAL);
}

size_t ol_tokenizer_bytes(const ol_tokenizer *tok)
{
    return ol_arena_bytes(tok->arena) + tok->cap_added * sizeof(*tok->added);
}
