/* tok_json_tail.c: decoders and post-processors of tokenizer.json. */
#include "engine/tokenizer/tok_internal.h"

#include <jansson.h>
#include <string.h>

static bool is(const char *type, const char *name)
{
    return strcmp(type, name) == 0;
}

/* ------------------------------------------------------------------- decoder */

static ol_code set_replace(ol_tokenizer *tok, tok_decoder *decoder, ol_span from, ol_span to,
                           ol_error *err)
{
    if (decoder->from.len > 0)
        return tok_json_unsupported("second decoder", "Replace", err);
    if (!from.data || from.len == 0 || !to.data || to.len > TOK_MAX_LITERAL)
        return ol_fail(err, OL_CORRUPT, "the tokenizer's decoder lacks its texts");
    if (!tok_keep(tok, from, &decoder->from) || !tok_keep(tok, to, &decoder->to))
        return tok_nomem(err);
    return OL_OK;
}

static ol_code read_strip(const json_t *node, tok_decoder *decoder, ol_error *err)
{
    const char *content = json_string_value(json_object_get(node, "content"));
    json_int_t start = json_integer_value(json_object_get(node, "start"));
    json_int_t stop = json_integer_value(json_object_get(node, "stop"));

    if (!content || !is(content, " ") || start < 0 || start > 1 || stop != 0 || !decoder->fused)
        return tok_json_unsupported("decoder", "Strip of this kind", err);
    decoder->strip_left = (int)start;
    return OL_OK;
}

static ol_code read_metaspace(ol_tokenizer *tok, const json_t *node, tok_decoder *decoder,
                              ol_error *err)
{
    const char *scheme = json_string_value(json_object_get(node, "prepend_scheme"));
    bool prepends = scheme ? !is(scheme, "never") : tok_json_flag(node, "add_prefix_space", true);

    decoder->strip_left = prepends ? 1 : 0;
    return set_replace(tok, decoder, tok_json_text(json_object_get(node, "replacement")),
                       tok_span(" ", 1), err);
}

static ol_code one_decoder(ol_tokenizer *tok, const json_t *node, tok_decoder *decoder,
                           ol_error *err)
{
    const char *type = tok_json_type(node);

    if (is(type, "ByteLevel")) {
        decoder->byte_level = true;
        return OL_OK;
    }
    if (is(type, "ByteFallback")) {
        decoder->byte_fallback = true;
        return OL_OK;
    }
    if (is(type, "Fuse")) {
        decoder->fused = true;
        return OL_OK;
    }
    if (is(type, "Strip"))
        return read_strip(node, decoder, err);
    if (is(type, "Metaspace"))
        return read_metaspace(tok, node, decoder, err);
    if (is(type, "Replace")) {
        const json_t *pattern = json_object_get(node, "pattern");

        if (!json_is_string(json_object_get(pattern, "String")))
            return tok_json_unsupported("decoder", "Replace of a regular expression", err);
        return set_replace(tok, decoder, tok_json_text(json_object_get(pattern, "String")),
                           tok_json_text(json_object_get(node, "content")), err);
    }
    return tok_json_unsupported("decoder", type, err);
}

ol_code tok_json_decoder(ol_tokenizer *tok, const json_t *node, tok_decoder *decoder, ol_error *err)
{
    size_t index;
    json_t *part;

    if (!node || json_is_null(node))
        return tok_json_unsupported("decoder", "none", err);
    if (!is(tok_json_type(node), "Sequence"))
        return one_decoder(tok, node, decoder, err);
    json_array_foreach(json_object_get(node, "decoders"), index, part)
        OL_TRY(one_decoder(tok, part, decoder, err));
    return OL_OK;
}

/* ------------------------------------------------------------------- post-processor */

static ol_code special_id(const ol_tokenizer *tok, const json_t *specials, const char *name,
                          int32_t *id, ol_error *err)
{
    const json_t *ids = json_object_get(json_object_get(specials, name), "ids");
    const json_t *first = json_array_get(ids, 0);

    if (json_array_size(ids) != 1 || !json_is_integer(first) || json_integer_value(first) < 0 ||
        json_integer_value(first) >= tok->n_vocab)
        return ol_fail(err, OL_CORRUPT, "the post-processor's token \"%.64s\" has no sensible id",
                       name);
    *id = (int32_t)json_integer_value(first);
    return OL_OK;
}

/* At most one special token before the text and one after it. */
static ol_code template(ol_tokenizer *tok, const json_t *node, ol_error *err)
{
    const json_t *specials = json_object_get(node, "special_tokens");
    bool after = false;
    size_t index;
    json_t *part;

    json_array_foreach(json_object_get(node, "single"), index, part)
    {
        const json_t *special = json_object_get(part, "SpecialToken");
        const char *name = json_string_value(json_object_get(special, "id"));
        int32_t *id = after ? &tok->eos : &tok->bos;
        bool *adds = after ? &tok->add_eos : &tok->add_bos;

        if (json_object_get(part, "Sequence")) {
            if (after)
                return tok_json_unsupported("post-processor", "TemplateProcessing of this kind",
                                            err);
            after = true;
            continue;
        }
        if (!name || *adds)
            return tok_json_unsupported("post-processor", "TemplateProcessing of this kind", err);
        OL_TRY(special_id(tok, specials, name, id, err));
        *adds = true;
    }
    return OL_OK;
}

ol_code tok_json_post_processor(ol_tokenizer *tok, const json_t *node, ol_error *err)
{
    const char *type = tok_json_type(node);
    size_t index;
    json_t *part;

    if (!node || json_is_null(node) || is(type, "ByteLevel"))
        return OL_OK;
    if (is(type, "TemplateProcessing"))
        return template(tok, node, err);
    if (!is(type, "Sequence"))
        return tok_json_unsupported("post-processor", type, err);
    json_array_foreach(json_object_get(node, "processors"), index, part)
    {
        const char *kind = tok_json_type(part);

        if (is(kind, "TemplateProcessing"))
            OL_TRY(template(tok, part, err));
        else if (!is(kind, "ByteLevel"))
            return tok_json_unsupported("post-processor", kind, err);
    }
    return OL_OK;
}
