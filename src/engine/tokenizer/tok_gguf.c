/* tok_gguf.c: the tokenizer of a GGUF file, from the values of its keys. */
#include "engine/tokenizer/tok_internal.h"

#include <string.h>

static int32_t type_of(const ol_gguf_vocab *vocab, size_t id)
{
    return vocab->types ? vocab->types[id] : OL_GGUF_NORMAL;
}

static ol_code add_special(ol_tokenizer *tok, const ol_gguf_vocab *vocab, int32_t id, bool special,
                           ol_error *err)
{
    ol_span key = vocab->tokens[id];
    tok_added added = {
        .content = key, .id = id, .special = special, .rstrip = special && vocab->rstrip_specials};

    OL_TRY(tok_set(tok, id, key, key, TOK_UNMAPPED | (special ? TOK_SPECIAL : 0), err));
    return tok_add_added(tok, &added, err);
}

/* ------------------------------------------------------------------- gpt2 */

static ol_code set_byte_level(ol_tokenizer *tok, const ol_gguf_vocab *vocab, int32_t id,
                              ol_error *err)
{
    uint8_t bytes[TOK_MAX_KEY];
    ol_span key = vocab->tokens[id];
    int32_t type = type_of(vocab, (size_t)id);
    size_t n = 0;

    if (key.len > TOK_MAX_KEY)
        return ol_fail(err, OL_LIMIT, "token %d is too long (%zu bytes)", id, key.len);
    /* Some files have their end token as an ordinary one. */
    if (type == OL_GGUF_CONTROL || type == OL_GGUF_UNKNOWN || id == vocab->bos || id == vocab->eos)
        return add_special(tok, vocab, id, true, err);
    if (type == OL_GGUF_USER_DEFINED)
        return add_special(tok, vocab, id, false, err);
    if (!tok_unmap_bytes(key, bytes, &n))
        return tok_set(tok, id, key, key, TOK_UNMAPPED, err);
    return tok_set(tok, id, tok_span(bytes, n), tok_span(NULL, 0),
                   type == OL_GGUF_UNUSED ? TOK_UNMAPPED : 0, err);
}

static ol_code add_merge(ol_tokenizer *tok, ol_span merge, uint32_t rank, ol_error *err)
{
    uint8_t left[TOK_MAX_KEY], right[TOK_MAX_KEY];
    const char *space = merge.len > 2 ? memchr(merge.data + 1, ' ', merge.len - 1) : NULL;
    size_t n_left = 0, n_right = 0, at;

    if (!space || merge.len > TOK_MAX_KEY)
        return ol_fail(err, OL_CORRUPT, "merge %u is not a pair of tokens", rank);
    at = (size_t)(space - merge.data);
    if (!tok_unmap_bytes(tok_span(merge.data, at), left, &n_left) ||
        !tok_unmap_bytes(tok_span(space + 1, merge.len - at - 1), right, &n_right) || n_right == 0)
        return ol_fail(err, OL_CORRUPT, "merge %u is not of byte-level tokens", rank);
    return tok_add_merge(tok, tok_span(left, n_left), tok_span(right, n_right), rank, err);
}

static ol_code build_gpt2(ol_tokenizer *tok, const ol_gguf_vocab *vocab, ol_error *err)
{
    const char *name = vocab->pre && *vocab->pre ? vocab->pre : "default";
    const tok_known_pre *pre = tok_known_pre_find(name);

    if (!pre) {
        ol_fail(err, OL_UNSUPPORTED, "unsupported pre-tokenizer \"%.64s\"", name);
        return ol_hint(err, "Use the model's own folder, whose tokenizer.json states the pattern.");
    }
    OL_TRY(tok_known_pre_apply(tok, pre, err));
    tok->bpe = TOK_BPE_MERGES;
    tok->byte_level = true;
    for (size_t i = 0; i < vocab->n_tokens; i++)
        OL_TRY(set_byte_level(tok, vocab, (int32_t)i, err));
    OL_TRY(tok_build_map(tok, err));
    if (vocab->n_merges > 16 * (size_t)OL_TOK_MAX_VOCAB)
        return ol_fail(err, OL_LIMIT, "too many merges");
    if (!tok_merges_init(&tok->merges, tok->arena, vocab->n_merges))
        return tok_nomem(err);
    for (size_t i = 0; i < vocab->n_merges; i++)
        OL_TRY(add_merge(tok, vocab->merges[i], (uint32_t)i, err));
    return OL_OK;
}

/* ------------------------------------------------------------------- llama */

static ol_code build_llama(ol_tokenizer *tok, const ol_gguf_vocab *vocab, ol_error *err)
{
    if (!vocab->scores)
        return ol_fail(err, OL_CORRUPT, "a SentencePiece vocabulary without scores");
    for (size_t i = 0; i < vocab->n_tokens; i++) {
        int32_t id = (int32_t)i, type = type_of(vocab, i);

        if (type == OL_GGUF_CONTROL || type == OL_GGUF_USER_DEFINED)
            OL_TRY(add_special(tok, vocab, id, type == OL_GGUF_CONTROL, err));
        else
            OL_TRY(tok_set_spm(tok, id, vocab->tokens[i], type, false, err));
    }
    tok->bpe = TOK_BPE_RANKS;
    tok->fuse_unk = true;
    tok->add_bos = true;
    OL_TRY(tok_rank_scores(tok, vocab->scores, err));
    return tok_add_spm_norms(tok, vocab->remove_extra_whitespaces == 1,
                             vocab->add_space_prefix != 0, err);
}

static ol_code check_ids(const ol_gguf_vocab *vocab, ol_error *err)
{
    const int32_t ids[] = {vocab->bos, vocab->eos, vocab->unk, vocab->eot, vocab->eom};

    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        if (ids[i] != OL_NO_TOKEN && (ids[i] < 0 || (size_t)ids[i] >= vocab->n_tokens))
            return ol_fail(err, OL_CORRUPT,
                           "special token id %d is outside of the vocabulary (%zu)", ids[i],
                           vocab->n_tokens);
    }
    return OL_OK;
}

static ol_code build(ol_tokenizer *tok, const ol_gguf_vocab *vocab, ol_error *err)
{
    bool is_llama = vocab->model && strcmp(vocab->model, "llama") == 0;

    if (!is_llama && !(vocab->model && strcmp(vocab->model, "gpt2") == 0)) {
        ol_fail(err, OL_UNSUPPORTED, "unsupported tokenizer model \"%.64s\"",
                vocab->model ? vocab->model : "");
        return ol_hint(err, "GGUF files with tokenizer model \"gpt2\" or \"llama\" are supported.");
    }
    OL_TRY(tok_vocab_alloc(tok, vocab->n_tokens, err));
    OL_TRY(check_ids(vocab, err));
    if (is_llama)
        OL_TRY(build_llama(tok, vocab, err));
    else
        OL_TRY(build_gpt2(tok, vocab, err));
    tok->bos = vocab->bos;
    tok->eos = vocab->eos;
    tok->unk = vocab->unk;
    if (vocab->add_bos >= 0)
        tok->add_bos = vocab->add_bos > 0;
    if (vocab->add_eos >= 0)
        tok->add_eos = vocab->add_eos > 0;
    OL_TRY(tok_finish(tok, err));
    if (vocab->eot != OL_NO_TOKEN)
        OL_TRY(tok_add_eog(tok, vocab->eot, err));
    if (vocab->eom != OL_NO_TOKEN)
        OL_TRY(tok_add_eog(tok, vocab->eom, err));
    return OL_OK;
}

ol_code ol_tokenizer_from_gguf_vocab(const ol_gguf_vocab *vocab, ol_tokenizer **out, ol_error *err)
{
    ol_tokenizer *tok = NULL;
    ol_code code = tok_new(&tok, err);

    if (code == OL_OK)
        code = build(tok, vocab, err);
    if (code != OL_OK) {
        ol_tokenizer_free(tok);
        return code;
    }
    *out = tok;
    return OL_OK;
}
