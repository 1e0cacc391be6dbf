/* tok_finish.c: the tables that every loader needs at its end. */
#include "engine/tokenizer/tok_internal.h"

#include <stdlib.h>
#include <string.h>

/* Special tokens of these names end a turn in the model families that have them. */
static const char *const end_names[] = {
    "<|eot_id|>",      "<|eom_id|>",    "<|im_end|>",      "<end_of_turn>",         "<|end|>",
    "<|end_of_text|>", "<|endoftext|>", "<|end_of_turn|>", "<|end_of_sentence|>",   "<|eot|>",
    "<|return|>",      "<|call|>",      "<EOT>",           "<|END_OF_TURN_TOKEN|>", "<turn|>",
};

static bool is_end_name(ol_span text)
{
    for (size_t i = 0; i < sizeof(end_names) / sizeof(end_names[0]); i++) {
        if (strlen(end_names[i]) == text.len && memcmp(end_names[i], text.data, text.len) == 0)
            return true;
    }
    return false;
}

ol_code tok_build_map(ol_tokenizer *tok, ol_error *err)
{
    if (tok->has_map)
        return OL_OK;
    tok->has_map = true;
    if (!tok_map_init(&tok->map, tok->arena, tok->keys, (size_t)tok->n_vocab))
        return tok_nomem(err);
    for (int32_t id = 0; id < tok->n_vocab; id++) {
        const ol_span *key = &tok->keys[id];

        if (!(tok->flags[id] & TOK_PRESENT) || (tok->flags[id] & TOK_UNMAPPED) || key->len == 0)
            continue;
        /* A token that is there twice keeps its first id. */
        if (tok_map_add(&tok->map, id) == OL_NO_TOKEN && key->len > tok->max_key)
            tok->max_key = key->len;
    }
    for (int c = 0; c < 128; c++) {
        char byte = (char)c;

        tok->ascii_id[c] = tok_map_find(&tok->map, &byte, 1);
    }
    return OL_OK;
}

ol_code tok_add_merge(ol_tokenizer *tok, ol_span left, ol_span right, uint32_t rank, ol_error *err)
{
    char joined[2 * TOK_MAX_KEY];
    int32_t left_id, right_id, id;

    if (left.len > TOK_MAX_KEY || right.len > TOK_MAX_KEY)
        return ol_fail(err, OL_LIMIT, "merge %u is too long", rank);
    left_id = tok_map_find(&tok->map, left.data, left.len);
    right_id = tok_map_find(&tok->map, right.data, right.len);
    memcpy(joined, left.data, left.len);
    memcpy(joined + left.len, right.data, right.len);
    id = tok_map_find(&tok->map, joined, left.len + right.len);
    if (left_id == OL_NO_TOKEN || right_id == OL_NO_TOKEN || id == OL_NO_TOKEN) {
        ol_fail(err, OL_CORRUPT, "merge %u is of tokens that the vocabulary lacks", rank);
        return ol_detail(err, "The merge is of %zu and %zu bytes.", left.len, right.len);
    }
    tok_merges_add(&tok->merges, left_id, right_id, rank, id);
    return OL_OK;
}

/* Byte symbols; for byte fallback the loader may have found byte tokens already. */
static void fill_bytes(ol_tokenizer *tok)
{
    if (tok->byte_level) {
        for (int b = 0; b < 256; b++) {
            uint8_t byte = (uint8_t)b;

            tok->byte_id[b] = tok_map_find(&tok->map, &byte, 1);
        }
        return;
    }
    for (int32_t id = 0; tok->byte_fallback && id < tok->n_vocab; id++) {
        int byte = tok->flags[id] & TOK_PRESENT ? tok_byte_token(tok->keys[id]) : -1;

        if (byte >= 0 && tok->byte_id[byte] == OL_NO_TOKEN)
            tok->byte_id[byte] = id;
    }
}

/* What an added token looks like after normalization, as Hugging Face does it. */
static ol_code normalized_content(ol_tokenizer *tok, const tok_added *added, ol_span *out,
                                  ol_error *err)
{
    tok_work work = {.tok = tok, .err = err, .first = true};
    ol_span text = added->content;
    ol_code code = OL_OK;

    if (!added->as_is && tok_utf8_valid((const uint8_t *)text.data, text.len) == text.len) {
        work.matcher = tok_matcher_new();
        code = work.matcher ? tok_normalize(&work, &text) : tok_nomem(err);
    }
    if (code == OL_OK && !tok_keep(tok, text, out))
        code = tok_nomem(err);
    tok_work_free(&work);
    return code;
}

static ol_code build_tries(ol_tokenizer *tok, ol_error *err)
{
    size_t n = tok->n_added, n_raw = 0, n_norm = 0;
    ol_span *contents = ol_arena_array(tok->arena, n + 1, sizeof(*contents));
    ol_span *norm_contents = ol_arena_array(tok->arena, n + 1, sizeof(*contents));
    int32_t *indexes = ol_arena_array(tok->arena, n + 1, sizeof(*indexes));
    int32_t *norm_indexes = ol_arena_array(tok->arena, n + 1, sizeof(*indexes));

    if (!contents || !norm_contents || !indexes || !norm_indexes)
        return tok_nomem(err);
    for (size_t i = 0; i < n; i++) {
        if (tok->added[i].normalized) {
            OL_TRY(normalized_content(tok, &tok->added[i], &norm_contents[n_norm], err));
            norm_indexes[n_norm++] = (int32_t)i;
        } else {
            contents[n_raw] = tok->added[i].content;
            indexes[n_raw++] = (int32_t)i;
        }
    }
    if (!tok_trie_build(&tok->raw_trie, tok->arena, contents, indexes, n_raw) ||
        !tok_trie_build(&tok->norm_trie, tok->arena, norm_contents, norm_indexes, n_norm))
        return tok_nomem(err);
    return OL_OK;
}

/* A SentencePiece text is one piece. Where no token reaches over the beginning of a
 * word, no merge does, and words can be merged one by one, which is much quicker. */
static bool words_are_apart(const ol_tokenizer *tok)
{
    if (tok->byte_level || tok_map_find(&tok->map, TOK_MARK, 3) == OL_NO_TOKEN)
        return false;
    for (int32_t id = 0; id < tok->n_vocab; id++) {
        const ol_span *key = &tok->keys[id];

        if (!(tok->flags[id] & TOK_PRESENT) || (tok->flags[id] & TOK_UNMAPPED))
            continue;
        for (size_t at = 1; at < key->len; at++) {
            if (tok_word_starts((const uint8_t *)key->data, key->len, at))
                return false;
        }
    }
    return true;
}

static ol_code check_id(const ol_tokenizer *tok, int32_t id, const char *what, ol_error *err)
{
    if (id != OL_NO_TOKEN && (id < 0 || id >= tok->n_vocab))
        return ol_fail(err, OL_CORRUPT, "the %s token id %d is outside of the vocabulary (%d)",
                       what, id, tok->n_vocab);
    return OL_OK;
}

ol_code tok_finish(ol_tokenizer *tok, ol_error *err)
{
    OL_TRY(check_id(tok, tok->bos, "bos", err));
    OL_TRY(check_id(tok, tok->eos, "eos", err));
    OL_TRY(check_id(tok, tok->unk, "unk", err));
    for (int32_t id = 0; id < tok->n_vocab; id++) {
        const ol_span *text = &tok->texts[id];

        if (tok_utf8_valid((const uint8_t *)text->data, text->len) == text->len)
            tok->flags[id] |= TOK_UTF8;
    }
    OL_TRY(tok_build_map(tok, err));
    fill_bytes(tok);
    tok->words_apart = words_are_apart(tok);
    OL_TRY(build_tries(tok, err));
    for (size_t i = 0; i < tok->n_added; i++) {
        if (tok->added[i].special && is_end_name(tok->added[i].content))
            OL_TRY(tok_add_eog(tok, tok->added[i].id, err));
    }
    if (tok->eos != OL_NO_TOKEN)
        OL_TRY(tok_add_eog(tok, tok->eos, err));
    return OL_OK;
}
