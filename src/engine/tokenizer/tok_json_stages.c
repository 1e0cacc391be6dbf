/* tok_json_stages.c: normalizers and pre-tokenizers of tokenizer.json. */
#include "engine/tokenizer/tok_internal.h"

#include <jansson.h>
#include <string.h>

#define MAX_DEPTH 4

typedef ol_code (*stage_fn)(ol_tokenizer *, const json_t *, int, ol_error *);

static ol_code each(ol_tokenizer *tok, const json_t *list, stage_fn fn, int depth, ol_error *err)
{
    size_t index;
    json_t *node;

    if (!json_is_array(list))
        return ol_fail(err, OL_CORRUPT, "a Sequence of the tokenizer has no list");
    if (depth >= MAX_DEPTH)
        return ol_fail(err, OL_UNSUPPORTED, "a Sequence of the tokenizer is nested too deeply");
    json_array_foreach(list, index, node) OL_TRY(fn(tok, node, depth + 1, err));
    return OL_OK;
}

static bool is(const char *type, const char *name)
{
    return strcmp(type, name) == 0;
}

/* {"String": ...} or {"Regex": ...}. */
static ol_code read_pattern(ol_tokenizer *tok, const json_t *node, tok_pattern *pattern,
                            ol_error *err)
{
    ol_span regex = tok_json_text(json_object_get(node, "Regex"));
    ol_span literal = tok_json_text(json_object_get(node, "String"));

    if (regex.data)
        return tok_regex_compile(tok, regex.data, regex.len, &pattern->regex, err);
    if (!literal.data || literal.len == 0)
        return ol_fail(err, OL_CORRUPT, "a pattern of the tokenizer is neither String nor Regex");
    if (literal.len > TOK_MAX_LITERAL)
        return ol_fail(err, OL_LIMIT, "a pattern of %zu bytes is too long", literal.len);
    pattern->literal = literal;
    return OL_OK;
}

/* ------------------------------------------------------------------- normalizers */

static ol_code one_normalizer(ol_tokenizer *tok, const json_t *node, const char *type,
                              ol_error *err)
{
    static const struct {
        const char *name;
        tok_norm_kind kind;
    } plain[] = {{"NFC", TOK_NORM_NFC},
                 {"NFD", TOK_NORM_NFD},
                 {"NFKC", TOK_NORM_NFKC},
                 {"NFKD", TOK_NORM_NFKD},
                 {"Lowercase", TOK_NORM_LOWERCASE}};
    tok_norm norm = {0};

    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++) {
        if (is(type, plain[i].name)) {
            norm.kind = plain[i].kind;
            return tok_add_norm(tok, norm, err);
        }
    }
    if (is(type, "Prepend")) {
        norm.kind = TOK_NORM_PREPEND;
        norm.text = tok_json_text(json_object_get(node, "prepend"));
    } else if (is(type, "Replace")) {
        norm.kind = TOK_NORM_REPLACE;
        norm.text = tok_json_text(json_object_get(node, "content"));
        OL_TRY(read_pattern(tok, json_object_get(node, "pattern"), &norm.pattern, err));
    } else if (is(type, "Strip")) {
        norm.kind = TOK_NORM_STRIP;
        norm.text = tok_span("", 0);
        norm.left = tok_json_flag(node, "strip_left", true);
        norm.right = tok_json_flag(node, "strip_right", true);
    } else {
        return tok_json_unsupported("normalizer", type, err);
    }
    if (!norm.text.data)
        return ol_fail(err, OL_CORRUPT, "the normalizer \"%s\" lacks its text", type);
    return tok_add_norm(tok, norm, err);
}

ol_code tok_json_normalizer(ol_tokenizer *tok, const json_t *node, int depth, ol_error *err)
{
    const char *type = tok_json_type(node);

    if (!node || json_is_null(node))
        return OL_OK;
    if (is(type, "Sequence"))
        return each(tok, json_object_get(node, "normalizers"), tok_json_normalizer, depth, err);
    return one_normalizer(tok, node, type, err);
}

/* ------------------------------------------------------------------- pre-tokenizers */

static ol_code read_behaviour(const json_t *node, tok_split missing, tok_split *behaviour,
                              ol_error *err)
{
    static const struct {
        const char *name;
        tok_split split;
    } names[] = {{"Isolated", TOK_ISOLATED},
                 {"Removed", TOK_REMOVED},
                 {"MergedWithPrevious", TOK_MERGED_WITH_PREVIOUS},
                 {"MergedWithNext", TOK_MERGED_WITH_NEXT},
                 {"Contiguous", TOK_CONTIGUOUS}};
    const char *name = json_string_value(json_object_get(node, "behavior"));

    *behaviour = missing;
    if (!name)
        return OL_OK;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (is(name, names[i].name)) {
            *behaviour = names[i].split;
            return OL_OK;
        }
    }
    return tok_json_unsupported("split behaviour", name, err);
}

/* Later stages see what ByteLevel leaves behind: its alphabet. */
static ol_code add_stage(ol_tokenizer *tok, tok_pre pre, ol_error *err)
{
    if (tok->byte_level && !tok->byte_mapped) {
        OL_TRY(tok_add_pre(tok, (tok_pre){.kind = TOK_PRE_BYTE_MAP}, err));
        tok->byte_mapped = true;
    }
    return tok_add_pre(tok, pre, err);
}

static ol_code add_regex(ol_tokenizer *tok, const char *pattern, tok_split behaviour, bool invert,
                         ol_error *err)
{
    tok_pre pre = {.kind = TOK_PRE_SPLIT, .behaviour = behaviour, .invert = invert};

    OL_TRY(tok_regex_compile(tok, pattern, strlen(pattern), &pre.pattern.regex, err));
    return add_stage(tok, pre, err);
}

static ol_code byte_level(ol_tokenizer *tok, const json_t *node, ol_error *err)
{
    if (tok->byte_level)
        return tok_json_unsupported("pre-tokenizer after ByteLevel", "ByteLevel", err);
    if (tok_json_flag(node, "add_prefix_space", true))
        OL_TRY(tok_add_pre(tok, (tok_pre){.kind = TOK_PRE_PREFIX_SPACE}, err));
    if (tok_json_flag(node, "use_regex", true))
        OL_TRY(tok_add_split(tok, TOK_PATTERN_GPT2, err));
    tok->byte_level = true;
    return OL_OK;
}

static ol_code metaspace(ol_tokenizer *tok, const json_t *node, ol_error *err)
{
    const char *scheme = json_string_value(json_object_get(node, "prepend_scheme"));
    tok_pre pre = {
        .kind = TOK_PRE_METASPACE,
        .replacement = tok_json_text(json_object_get(node, "replacement")),
        .prepend = TOK_PREPEND_ALWAYS,
        .split = tok_json_flag(node, "split", true),
    };

    if (!pre.replacement.data || pre.replacement.len == 0 || pre.replacement.len > 4)
        return ol_fail(err, OL_CORRUPT, "the pre-tokenizer \"Metaspace\" has no replacement");
    if (!scheme)
        scheme = tok_json_flag(node, "add_prefix_space", true) ? "always" : "never";
    if (is(scheme, "first"))
        pre.prepend = TOK_PREPEND_FIRST;
    else if (is(scheme, "never"))
        pre.prepend = TOK_PREPEND_NEVER;
    else if (!is(scheme, "always"))
        return tok_json_unsupported("prepend_scheme", scheme, err);
    return add_stage(tok, pre, err);
}

static ol_code split(ol_tokenizer *tok, const json_t *node, ol_error *err)
{
    tok_pre pre = {.kind = TOK_PRE_SPLIT, .invert = tok_json_flag(node, "invert", false)};

    OL_TRY(read_behaviour(node, TOK_ISOLATED, &pre.behaviour, err));
    OL_TRY(read_pattern(tok, json_object_get(node, "pattern"), &pre.pattern, err));
    return add_stage(tok, pre, err);
}

ol_code tok_json_pre_tokenizer(ol_tokenizer *tok, const json_t *node, int depth, ol_error *err)
{
    const char *type = tok_json_type(node);
    tok_split behaviour;

    if (!node || json_is_null(node))
        return OL_OK;
    if (is(type, "Sequence"))
        return each(tok, json_object_get(node, "pretokenizers"), tok_json_pre_tokenizer, depth,
                    err);
    if (is(type, "Split"))
        return split(tok, node, err);
    if (is(type, "ByteLevel"))
        return byte_level(tok, node, err);
    if (is(type, "Metaspace"))
        return metaspace(tok, node, err);
    if (is(type, "Digits"))
        return add_regex(tok, "\\p{N}",
                         tok_json_flag(node, "individual_digits", false) ? TOK_ISOLATED
                                                                         : TOK_CONTIGUOUS,
                         false, err);
    if (is(type, "Punctuation")) {
        OL_TRY(read_behaviour(node, TOK_ISOLATED, &behaviour, err));
        return add_regex(tok, "[\\p{P}!-/:-@\\[-`{-~]", behaviour, false, err);
    }
    if (is(type, "Whitespace"))
        return add_regex(tok, "\\w+|[^\\w\\s]+", TOK_REMOVED, true, err);
    if (is(type, "WhitespaceSplit"))
        return add_regex(tok, "\\s", TOK_REMOVED, false, err);
    return tok_json_unsupported("pre-tokenizer", type, err);
}
