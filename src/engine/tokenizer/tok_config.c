/* tok_config.c: the JSON files beside a tokenizer: which ids are bos, eos and ends. */
#include "engine/tokenizer/tok_internal.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"

/* *root is NULL when there is no such file. */
static ol_code load(const char *folder, const char *file, json_t **root, ol_error *err)
{
    char path[4096];
    json_error_t where;
    ol_map map;

    *root = NULL;
    if (snprintf(path, sizeof(path), "%s/%s", folder, file) >= (int)sizeof(path))
        return ol_fail(err, OL_INVALID, "the path of the model folder is too long");
    if (access(path, F_OK) != 0)
        return errno == ENOENT ? OL_OK : ol_fail_errno(err, "cannot read", path);
    OL_TRY(ol_map_open(path, &map, err));
    *root = json_loadb((const char *)map.data, map.len, JSON_ALLOW_NUL, &where);
    ol_map_close(&map);
    if (!*root)
        return ol_fail(err, OL_CORRUPT, "%s: line %d: %s", path, where.line, where.text);
    return OL_OK;
}

/* "text", or {"content": "text"}. */
static void token_named(const ol_tokenizer *tok, const json_t *root, const char *key, int32_t *id)
{
    const json_t *node = json_object_get(root, key);
    ol_span text = tok_json_text(json_is_object(node) ? json_object_get(node, "content") : node);
    int32_t found = text.data ? ol_tokenizer_find(tok, text.data, text.len) : OL_NO_TOKEN;

    if (found != OL_NO_TOKEN)
        *id = found;
}

static void apply_names(ol_tokenizer *tok, const json_t *root)
{
    token_named(tok, root, "bos_token", &tok->bos);
    token_named(tok, root, "eos_token", &tok->eos);
    tok->add_bos = tok_json_flag(root, "add_bos_token", tok->add_bos);
    tok->add_eos = tok_json_flag(root, "add_eos_token", tok->add_eos);
}

static ol_code add_end(ol_tokenizer *tok, const json_t *node, ol_error *err)
{
    json_int_t id = json_integer_value(node);

    /* A model may have more output rows than its tokenizer has tokens. */
    if (!json_is_integer(node) || id < 0 || id >= tok->n_vocab)
        return OL_OK;
    if (tok->eos == OL_NO_TOKEN)
        tok->eos = (int32_t)id;
    return tok_add_eog(tok, (int32_t)id, err);
}

static ol_code apply_ids(ol_tokenizer *tok, const json_t *root, ol_error *err)
{
    const json_t *bos = json_object_get(root, "bos_token_id");
    const json_t *eos = json_object_get(root, "eos_token_id");
    size_t index;
    json_t *node;

    if (tok->bos == OL_NO_TOKEN && tok->add_bos && json_is_integer(bos) &&
        json_integer_value(bos) >= 0 && json_integer_value(bos) < tok->n_vocab)
        tok->bos = (int32_t)json_integer_value(bos);
    if (!json_is_array(eos))
        return add_end(tok, eos, err);
    json_array_foreach(eos, index, node) OL_TRY(add_end(tok, node, err));
    return OL_OK;
}

ol_code tok_apply_configs(ol_tokenizer *tok, const char *folder, ol_error *err)
{
    static const char *const names[] = {"special_tokens_map.json", "tokenizer_config.json"};
    static const char *const ids[] = {"generation_config.json", "config.json"};
    json_t *root;

    for (size_t i = 0; i < 2; i++) { /* the later one has the last word */
        OL_TRY(load(folder, names[i], &root, err));
        apply_names(tok, root);
        json_decref(root);
    }
    if (tok->eos != OL_NO_TOKEN)
        OL_TRY(tok_add_eog(tok, tok->eos, err));
    for (size_t i = 0; i < 2; i++) {
        ol_code code;

        OL_TRY(load(folder, ids[i], &root, err));
        code = apply_ids(tok, root, err);
        json_decref(root);
        OL_TRY(code);
    }
    return OL_OK;
}
