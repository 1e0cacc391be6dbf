/* tok_open.c: tokenizers from files and folders. */
#include "engine/tokenizer/tok_internal.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"

static bool looks_like_json(const uint8_t *p, size_t len)
{
    size_t at = 0;

    while (at < len && (p[at] == ' ' || p[at] == '\n' || p[at] == '\r' || p[at] == '\t'))
        at++;
    return at < len && p[at] == '{';
}

/* ModelProto begins with its pieces: field 1, length-delimited. */
static bool looks_like_spm(const uint8_t *p, size_t len)
{
    return len > 2 && p[0] == 0x0A;
}

static bool looks_like_ranks(const uint8_t *p, size_t len)
{
    size_t at = 0;

    while (at < len && at < 64 && p[at] > ' ' && p[at] < 0x7F)
        at++;
    return at > 0 && at + 1 < len && p[at] == ' ' && p[at + 1] >= '0' && p[at + 1] <= '9';
}

ol_code ol_tokenizer_from_file(const char *path, ol_tok_flavour flavour, ol_tokenizer **out,
                               ol_error *err)
{
    ol_map map;
    ol_code code;

    OL_TRY(ol_map_open(path, &map, err));
    if (looks_like_json(map.data, map.len)) {
        code = ol_tokenizer_from_json(map.data, map.len, path, out, err);
    } else if (looks_like_spm(map.data, map.len)) {
        code = ol_tokenizer_from_spm(map.data, map.len, path, out, err);
    } else if (looks_like_ranks(map.data, map.len)) {
        code = ol_tokenizer_from_tiktoken(map.data, map.len, flavour, path, out, err);
    } else {
        ol_fail(err, OL_UNSUPPORTED, "%s is no tokenizer file that we know", path);
        code = ol_hint(err, "Known are tokenizer.json, SentencePiece models and tiktoken ranks.");
    }
    ol_map_close(&map);
    return code;
}

/* The only *.tiktoken file of the folder; "" when there is none. */
static ol_code find_ranks(const char *folder, char *name, size_t size, ol_error *err)
{
    static const char ending[] = ".tiktoken";
    DIR *dir = opendir(folder);
    struct dirent *entry;
    int found = 0;

    name[0] = '\0';
    if (!dir)
        return ol_fail_errno(err, "cannot open the model folder", folder);
    while ((entry = readdir(dir)) != NULL) {
        size_t len = strlen(entry->d_name);

        if (len < sizeof(ending) - 1 ||
            strcmp(entry->d_name + len - (sizeof(ending) - 1), ending) != 0)
            continue;
        found++;
        snprintf(name, size, "%s", entry->d_name);
    }
    closedir(dir);
    if (found > 1)
        return ol_fail(err, OL_INVALID, "%s holds %d *.tiktoken files", folder, found);
    return OL_OK;
}

static ol_code find_file(const char *folder, char *path, size_t size, ol_error *err)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer.model"};
    char ranks[256];

    for (size_t i = 0; i < 2; i++) {
        if (snprintf(path, size, "%s/%s", folder, names[i]) >= (int)size)
            return ol_fail(err, OL_INVALID, "the path of the model folder is too long");
        if (access(path, F_OK) == 0)
            return OL_OK;
    }
    OL_TRY(find_ranks(folder, ranks, sizeof(ranks), err));
    if (!ranks[0]) {
        ol_fail(err, OL_NOT_FOUND, "%s holds no tokenizer", folder);
        return ol_hint(err, "There should be a tokenizer.json or tokenizer.model beside the "
                            "weights.");
    }
    if (snprintf(path, size, "%s/%s", folder, ranks) >= (int)size)
        return ol_fail(err, OL_INVALID, "the path of the model folder is too long");
    return OL_OK;
}

ol_code ol_tokenizer_from_hf(const char *folder, ol_tokenizer **out, ol_error *err)
{
    char path[4096];
    ol_tokenizer *tok = NULL;
    ol_code code;

    OL_TRY(find_file(folder, path, sizeof(path), err));
    OL_TRY(ol_tokenizer_from_file(path, OL_TOK_AUTO, &tok, err));
    code = tok_apply_configs(tok, folder, err);
    if (code != OL_OK) {
        ol_tokenizer_free(tok);
        return code;
    }
    *out = tok;
    return OL_OK;
}
