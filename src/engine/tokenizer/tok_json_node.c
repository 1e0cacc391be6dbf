/* tok_json_node.c: reading single nodes of tokenizer.json, for the parts that know what they
 * mean. */
#include "engine/tokenizer/tok_internal.h"

#include <jansson.h>

ol_code tok_json_unsupported(const char *what, const char *type, ol_error *err)
{
    ol_fail(err, OL_UNSUPPORTED, "unsupported %s \"%.64s\" in the tokenizer", what, type);
    return ol_hint(err, "Byte-level BPE and SentencePiece BPE tokenizers are supported.");
}

const char *tok_json_type(const json_t *node)
{
    const char *type = json_string_value(json_object_get(node, "type"));

    return type ? type : "?";
}

bool tok_json_flag(const json_t *node, const char *key, bool missing)
{
    const json_t *value = json_object_get(node, key);

    return json_is_boolean(value) ? json_is_true(value) : missing;
}

ol_span tok_json_text(const json_t *node)
{
    return json_is_string(node) ? tok_span(json_string_value(node), json_string_length(node))
                                : tok_span(NULL, 0);
}
