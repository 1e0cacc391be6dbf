/* vocab.c: see vocab.h. */
#include "engine/vocab.h"

#include <dirent.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* -- GGUF ------------------------------------------------------------------------------ */

#define KEY(name) "tokenizer.ggml." name

/* An id that the file may lack. */
static ol_code read_id(const ol_gguf *gguf, const char *key, int32_t *id, ol_error *err)
{
    int64_t value;

    OL_TRY(ol_gguf_i64(gguf, key, OL_NO_TOKEN, &value, err));
    if (value < OL_NO_TOKEN || value > INT32_MAX)
        return ol_fail(err, OL_CORRUPT, "%s: %s is %lld", ol_gguf_name(gguf), key,
                       (long long)value);
    *id = (int32_t)value;
    return OL_OK;
}

/* -1 when the file does not say. */
static ol_code read_flag(const ol_gguf *gguf, const char *key, int8_t *flag, ol_error *err)
{
    bool value;

    *flag = -1;
    if (!ol_gguf_find(gguf, key))
        return OL_OK;
    OL_TRY(ol_gguf_bool(gguf, key, false, &value, err));
    *flag = value;
    return OL_OK;
}

static ol_code read_ids(const ol_gguf *gguf, ol_gguf_vocab *v, ol_error *err)
{
    OL_TRY(read_id(gguf, KEY("bos_token_id"), &v->bos, err));
    OL_TRY(read_id(gguf, KEY("eos_token_id"), &v->eos, err));
    OL_TRY(read_id(gguf, KEY("unknown_token_id"), &v->unk, err));
    OL_TRY(read_id(gguf, KEY("eot_token_id"), &v->eot, err));
    OL_TRY(read_id(gguf, KEY("eom_token_id"), &v->eom, err));
    OL_TRY(read_flag(gguf, KEY("add_bos_token"), &v->add_bos, err));
    OL_TRY(read_flag(gguf, KEY("add_eos_token"), &v->add_eos, err));
    OL_TRY(read_flag(gguf, KEY("add_space_prefix"), &v->add_space_prefix, err));
    return read_flag(gguf, KEY("remove_extra_whitespaces"), &v->remove_extra_whitespaces, err);
}

_Static_assert(sizeof(ol_span) == sizeof(ol_gguf_str) &&
                   offsetof(ol_span, data) == offsetof(ol_gguf_str, ptr) &&
                   offsetof(ol_span, len) == offsetof(ol_gguf_str, len),
               "strings of a GGUF file are taken as spans");

static ol_code read_strings(ol_gguf *gguf, const char *key, const ol_span **spans, size_t *n,
                            ol_error *err)
{
    const ol_gguf_str *strings;

    OL_TRY(ol_gguf_string_array(gguf, key, &strings, n, err));
    *spans = (const ol_span *)(const void *)strings;
    return OL_OK;
}

static ol_code read_arrays(ol_gguf *gguf, ol_gguf_vocab *v, ol_error *err)
{
    size_t n_scores, n_types;

    OL_TRY(read_strings(gguf, KEY("tokens"), &v->tokens, &v->n_tokens, err));
    OL_TRY(read_strings(gguf, KEY("merges"), &v->merges, &v->n_merges, err));
    OL_TRY(ol_gguf_f32_array(gguf, KEY("scores"), &v->scores, &n_scores, err));
    OL_TRY(ol_gguf_i32_array(gguf, KEY("token_type"), &v->types, &n_types, err));
    if (v->n_tokens == 0)
        return ol_fail(err, OL_CORRUPT, "%s: the vocabulary has no tokens", ol_gguf_name(gguf));
    if ((v->scores && n_scores != v->n_tokens) || (v->types && n_types != v->n_tokens)) {
        ol_fail(err, OL_CORRUPT, "%s: the vocabulary's arrays differ in length",
                ol_gguf_name(gguf));
        return ol_detail(err, "%zu tokens, %zu scores, %zu types.", v->n_tokens, n_scores, n_types);
    }
    return OL_OK;
}

/* A string value as a C string; NULL when the key is absent. */
static ol_code read_name(const ol_gguf *gguf, const char *key, char out[64], const char **name,
                         ol_error *err)
{
    ol_gguf_str value;

    *name = NULL;
    OL_TRY(ol_gguf_string(gguf, key, &value, err));
    if (!value.ptr)
        return OL_OK;
    if (value.len >= 64 || memchr(value.ptr, 0, value.len))
        return ol_fail(err, OL_CORRUPT, "%s: %s is no name", ol_gguf_name(gguf), key);
    memcpy(out, value.ptr, value.len);
    out[value.len] = '\0';
    *name = out;
    return OL_OK;
}

ol_code ol_vocab_of_gguf(ol_gguf *gguf, ol_tokenizer **tok, ol_error *err)
{
    ol_gguf_vocab v = OL_GGUF_VOCAB_INIT;
    char model[64], pre[64];

    *tok = NULL;
    OL_TRY(read_name(gguf, KEY("model"), model, &v.model, err));
    if (!v.model || strcmp(v.model, "none") == 0 || strcmp(v.model, "no_vocab") == 0)
        return OL_OK;
    OL_TRY(read_name(gguf, KEY("pre"), pre, &v.pre, err));
    OL_TRY(read_ids(gguf, &v, err));
    OL_TRY(read_arrays(gguf, &v, err));
    v.rstrip_specials = ol_gguf_is(gguf, "general.architecture", "phi3");
    if (ol_tokenizer_from_gguf_vocab(&v, tok, err) != OL_OK)
        return ol_prefix(err, "%s", ol_gguf_name(gguf));
    return OL_OK;
}

/* -- folders and files --------------------------------------------------------------------- */

/* Whether the folder holds what ol_tokenizer_from_hf looks for. */
static bool folder_has_tokenizer(const char *folder)
{
    DIR *dir = opendir(folder);
    const struct dirent *entry;
    bool found = false;

    while (dir && !found && (entry = readdir(dir))) {
        size_t len = strlen(entry->d_name);

        found = strcmp(entry->d_name, "tokenizer.json") == 0 ||
                strcmp(entry->d_name, "tokenizer.model") == 0 ||
                (len > 9 && strcmp(entry->d_name + len - 9, ".tiktoken") == 0);
    }
    if (dir)
        closedir(dir);
    return found;
}

static ol_code of_folder(const char *folder, ol_tokenizer **tok, ol_error *err)
{
    *tok = NULL;
    return folder_has_tokenizer(folder) ? ol_tokenizer_from_hf(folder, tok, err) : OL_OK;
}

ol_code ol_vocab_of_model(const ol_model_source *source, ol_tokenizer **tok, ol_error *err)
{
    ol_gguf *gguf = ol_model_source_gguf(source);

    return gguf ? ol_vocab_of_gguf(gguf, tok, err)
                : of_folder(ol_model_source_path(source), tok, err);
}

static ol_code of_file(const char *path, ol_tokenizer **tok, ol_error *err)
{
    ol_gguf *gguf;
    ol_map map;
    bool is_gguf;
    ol_code code;

    OL_TRY(ol_map_open(path, &map, err));
    is_gguf = ol_gguf_magic(map.data, map.len);
    ol_map_close(&map);
    if (!is_gguf)
        return ol_tokenizer_from_file(path, OL_TOK_AUTO, tok, err);
    OL_TRY(ol_gguf_open(path, &gguf, err));
    code = ol_vocab_of_gguf(gguf, tok, err);
    ol_gguf_close(gguf);
    return code;
}

ol_code ol_vocab_of_path(const char *path, ol_tokenizer **tok, ol_error *err)
{
    struct stat st;

    *tok = NULL;
    if (stat(path, &st) != 0)
        return ol_fail_errno(err, "could not open", path);
    OL_TRY(S_ISDIR(st.st_mode) ? of_folder(path, tok, err) : of_file(path, tok, err));
    if (!*tok)
        return ol_fail(err, OL_NOT_FOUND, "\"%s\" holds no tokenizer", path);
    return OL_OK;
}
