/*
 * tok_json.c: Hugging Face's tokenizer.json: the BPE model and the added tokens. The
 * other parts are in tok_json_stages.c (before the model) and tok_json_tail.c (after).
 */
#include "engine/tokenizer/tok_internal.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* Merges of special tokens, which user text must not form, are left out; a file in
 * which this is common is not what we think it is. */
#define MAX_LEFT_OUT 1000

/* ------------------------------------------------------------------- vocabulary */

static ol_code count_ids(const json_t *vocab, const json_t *added, size_t *n, ol_error *err)
{
    json_int_t max = -1;
    size_t entries = json_object_size(vocab) + json_array_size(added), index;
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)vocab, key, value)
    {
        json_int_t id = json_integer_value(value);

        if (!json_is_integer(value) || id < 0 || id >= OL_TOK_MAX_VOCAB)
            return ol_fail(err, OL_CORRUPT, "token \"%.64s\" has no sensible id", key);
        max = id > max ? id : max;
    }
    json_array_foreach(added, index, value)
    {
        const json_t *node = json_object_get(value, "id");
        json_int_t id = json_integer_value(node);

        if (!json_is_integer(node) || id < 0 || id >= OL_TOK_MAX_VOCAB)
            return ol_fail(err, OL_CORRUPT, "added token %zu has no sensible id", index);
        max = id > max ? id : max;
    }
    if (max < 0 || (size_t)max > 16 * entries + 65536)
        return ol_fail(err, OL_CORRUPT, "%zu tokens with ids up to %lld", entries, (long long)max);
    *n = (size_t)max + 1;
    return OL_OK;
}

/* What a key decodes to. `out` has room for len + 8 bytes at least. */
static ol_span text_of(const tok_decoder *decoder, ol_span key, ol_buf *out)
{
    int byte = decoder->byte_fallback ? tok_byte_token(key) : -1;
    size_t at = 0;

    ol_buf_reset(out);
    if (byte >= 0) {
        ol_buf_put_u8(out, (uint8_t)byte);
        return tok_span(out->data, out->len);
    }
    while (decoder->from.len > 0 && at < key.len) {
        const char *next =
            memmem(key.data + at, key.len - at, decoder->from.data, decoder->from.len);

        if (!next)
            break;
        ol_buf_put(out, key.data + at, (size_t)(next - key.data) - at);
        ol_buf_put(out, decoder->to.data, decoder->to.len);
        at = (size_t)(next - key.data) + decoder->from.len;
    }
    ol_buf_put(out, key.data + at, key.len - at);
    return tok_span(out->data ? (const char *)out->data : "", out->len);
}

static ol_code set_token(ol_tokenizer *tok, const tok_decoder *decoder, int32_t id, ol_span key,
                         ol_buf *scratch, ol_error *err)
{
    ol_span text = tok_span(NULL, 0);
    unsigned flags = 0;
    size_t n = 0;

    if (tok->flags[id] & TOK_PRESENT)
        return ol_fail(err, OL_CORRUPT, "two tokens have the id %d", id);
    if (tok->byte_level) {
        ol_buf_reset(scratch);
        if (!ol_buf_reserve(scratch, key.len + 1))
            return tok_nomem(err);
        /* A key outside of the byte alphabet cannot come out of BPE. */
        if (tok_unmap_bytes(key, scratch->data, &n))
            key = tok_span(scratch->data, n);
        else
            flags |= TOK_UNMAPPED;
    } else {
        text = text_of(decoder, key, scratch);
        if (scratch->failed)
            return tok_nomem(err);
    }
    return tok_set(tok, id, key, text, flags, err);
}

static ol_code read_vocab(ol_tokenizer *tok, const json_t *vocab, const tok_decoder *decoder,
                          ol_error *err)
{
    ol_buf scratch = {0};
    ol_code code = OL_OK;
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)vocab, key, value)
    {
        code = set_token(tok, decoder, (int32_t)json_integer_value(value),
                         tok_span(key, strlen(key)), &scratch, err);
        if (code != OL_OK)
            break;
    }
    ol_buf_free(&scratch);
    return code;
}

static ol_code read_added_token(ol_tokenizer *tok, const json_t *node, const tok_decoder *decoder,
                                ol_buf *scratch, ol_error *err)
{
    ol_span content = tok_json_text(json_object_get(node, "content")), text = content;
    int32_t id = (int32_t)json_integer_value(json_object_get(node, "id"));
    tok_added added = {
        .content = content,
        .id = id,
        .special = tok_json_flag(node, "special", false),
        .lstrip = tok_json_flag(node, "lstrip", false),
        .rstrip = tok_json_flag(node, "rstrip", false),
        .single_word = tok_json_flag(node, "single_word", false),
    };

    if (!content.data)
        return ol_fail(err, OL_CORRUPT, "added token %d has no content", id);
    added.normalized = tok_json_flag(node, "normalized", !added.special);
    if (!tok->byte_level && !added.special)
        text = text_of(decoder, content, scratch);
    if (scratch->failed)
        return tok_nomem(err);
    if (!(tok->flags[id] & TOK_PRESENT))
        OL_TRY(tok_set(tok, id, content, text, TOK_UNMAPPED, err));
    else if (!tok_keep(tok, text, &tok->texts[id]))
        return tok_nomem(err);
    if (added.special)
        tok->flags[id] |= TOK_SPECIAL | TOK_UNMAPPED;
    return tok_add_added(tok, &added, err);
}

static ol_code read_added(ol_tokenizer *tok, const json_t *list, const tok_decoder *decoder,
                          ol_error *err)
{
    ol_buf scratch = {0};
    ol_code code = OL_OK;
    size_t index;
    json_t *node;

    json_array_foreach(list, index, node)
    {
        if ((code = read_added_token(tok, node, decoder, &scratch, err)) != OL_OK)
            break;
    }
    ol_buf_free(&scratch);
    return code;
}

/* ------------------------------------------------------------------- merges */

/* "left right" or ["left", "right"]. */
static bool merge_parts(const json_t *node, ol_span *left, ol_span *right)
{
    const char *space;

    if (json_is_array(node) && json_array_size(node) == 2) {
        *left = tok_json_text(json_array_get(node, 0));
        *right = tok_json_text(json_array_get(node, 1));
        return left->data && right->data && left->len > 0 && right->len > 0;
    }
    *left = tok_json_text(node);
    if (!left->data || !(space = memchr(left->data, ' ', left->len)))
        return false;
    *right = tok_span(space + 1, left->len - (size_t)(space + 1 - left->data));
    left->len = (size_t)(space - left->data);
    return left->len > 0 && right->len > 0 && !memchr(right->data, ' ', right->len);
}

static bool unmap_part(ol_span *part, uint8_t out[TOK_MAX_KEY])
{
    size_t n = 0;

    if (part->len > TOK_MAX_KEY || !tok_unmap_bytes(*part, out, &n))
        return false;
    *part = tok_span(out, n);
    return true;
}

static bool is_of_special(const ol_tokenizer *tok, ol_span left, ol_span right)
{
    for (size_t i = 0; i < tok->n_added; i++) {
        const ol_span *c = &tok->added[i].content;

        if (!tok->added[i].special)
            continue;
        if ((c->len == left.len && memcmp(c->data, left.data, c->len) == 0) ||
            (c->len == right.len && memcmp(c->data, right.data, c->len) == 0) ||
            (c->len == left.len + right.len && memcmp(c->data, left.data, left.len) == 0 &&
             memcmp(c->data + left.len, right.data, right.len) == 0))
            return true;
    }
    return false;
}

static ol_code read_merges(ol_tokenizer *tok, const json_t *merges, ol_error *err)
{
    uint8_t left_bytes[TOK_MAX_KEY], right_bytes[TOK_MAX_KEY];
    size_t index, left_out = 0;
    json_t *node;

    if (json_array_size(merges) > 16 * (size_t)OL_TOK_MAX_VOCAB)
        return ol_fail(err, OL_LIMIT, "too many merges");
    if (!tok_merges_init(&tok->merges, tok->arena, json_array_size(merges)))
        return tok_nomem(err);
    json_array_foreach(merges, index, node)
    {
        ol_span left, right;

        if (!merge_parts(node, &left, &right))
            return ol_fail(err, OL_CORRUPT, "merge %zu is not a pair of tokens", index);
        if (tok->byte_level && (!unmap_part(&left, left_bytes) || !unmap_part(&right, right_bytes)))
            return ol_fail(err, OL_CORRUPT, "merge %zu is not of byte-level tokens", index);
        if (tok_add_merge(tok, left, right, (uint32_t)index, err) == OL_OK)
            continue;
        if (err->code != OL_CORRUPT || ++left_out > MAX_LEFT_OUT ||
            !is_of_special(tok, left, right))
            return err->code;
    }
    return OL_OK;
}

/* ------------------------------------------------------------------- the model */

static ol_code check_model(const json_t *model, ol_error *err)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const json_t *dropout = json_object_get(model, "dropout");
    const char *type = json_string_value(json_object_get(model, "type"));

    if (!json_is_object(model))
        return ol_fail(err, OL_CORRUPT, "the tokenizer has no model");
    if (type && strcmp(type, "BPE") != 0)
        return tok_json_unsupported("model", type, err);
    for (size_t i = 0; i < 2; i++) {
        const char *affix = json_string_value(json_object_get(model, affixes[i]));

        if (affix && *affix)
            return tok_json_unsupported(affixes[i], affix, err);
    }
    if (json_is_number(dropout) && json_number_value(dropout) != 0)
        return tok_json_unsupported("model option", "dropout", err);
    if (!json_is_object(json_object_get(model, "vocab")) ||
        !json_is_array(json_object_get(model, "merges")))
        return type ? ol_fail(err, OL_CORRUPT, "the tokenizer's model lacks vocab or merges")
                    : tok_json_unsupported("model", "?", err);
    return OL_OK;
}

static ol_code read_model(ol_tokenizer *tok, const json_t *root, const tok_decoder *decoder,
                          ol_error *err)
{
    const json_t *model = json_object_get(root, "model");
    const json_t *vocab = json_object_get(model, "vocab");
    const json_t *added = json_object_get(root, "added_tokens");
    const char *unk = json_string_value(json_object_get(model, "unk_token"));
    size_t n = 0;

    OL_TRY(count_ids(vocab, added, &n, err));
    OL_TRY(tok_vocab_alloc(tok, n, err));
    OL_TRY(read_vocab(tok, vocab, decoder, err));
    OL_TRY(read_added(tok, added, decoder, err));
    tok->bpe = TOK_BPE_MERGES;
    tok->early_fallback = true;
    tok->byte_fallback = tok_json_flag(model, "byte_fallback", false);
    tok->fuse_unk = tok_json_flag(model, "fuse_unk", false);
    tok->whole_words = tok_json_flag(model, "ignore_merges", false);
    if (unk) {
        const json_t *id = json_object_get(vocab, unk);

        if (!json_is_integer(id))
            return ol_fail(err, OL_CORRUPT, "the unknown token is not in the vocabulary");
        tok->unk = (int32_t)json_integer_value(id);
    }
    OL_TRY(tok_build_map(tok, err));
    return read_merges(tok, json_object_get(model, "merges"), err);
}

static ol_code build(ol_tokenizer *tok, const json_t *root, ol_error *err)
{
    tok_decoder decoder = {0};

    OL_TRY(check_model(json_object_get(root, "model"), err));
    OL_TRY(tok_json_normalizer(tok, json_object_get(root, "normalizer"), 0, err));
    OL_TRY(tok_json_pre_tokenizer(tok, json_object_get(root, "pre_tokenizer"), 0, err));
    OL_TRY(tok_json_decoder(tok, json_object_get(root, "decoder"), &decoder, err));
    if (decoder.byte_level != tok->byte_level)
        return tok_json_unsupported("decoder for this pre-tokenizer",
                                    tok_json_type(json_object_get(root, "decoder")), err);
    tok->strip_left = decoder.strip_left;
    OL_TRY(read_model(tok, root, &decoder, err));
    OL_TRY(tok_json_post_processor(tok, json_object_get(root, "post_processor"), err));
    return tok_finish(tok, err);
}

ol_code ol_tokenizer_from_json(const void *bytes, size_t len, const char *name, ol_tokenizer **out,
                               ol_error *err)
{
    ol_tokenizer *tok = NULL;
    json_error_t where;
    json_t *root;
    ol_code code;

    root = json_loadb(bytes, len, JSON_ALLOW_NUL, &where);
    if (!root)
        return ol_fail(err, OL_CORRUPT, "%s: line %d: %s", name, where.line, where.text);
    code = tok_new(&tok, err);
    if (code == OL_OK)
        code = build(tok, root, err);
    json_decref(root);
    if (code != OL_OK) {
        ol_tokenizer_free(tok);
        return ol_prefix(err, "%s", name);
    }
    *out = tok;
    return OL_OK;
}
