/* safetensors_folder.c: a model's shards, with or without an index. */
#include "engine/formats/safetensors_internal.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MAX_SHARDS 4096
#define MAX_PATH 4096

/* An index must not lead out of its folder. */
static bool plain_file_name(const char *name)
{
    size_t len = name ? strlen(name) : 0;

    return len > 12 && len < 256 && !strchr(name, '/') &&
           strcmp(name + len - 12, ".safetensors") == 0;
}

static ol_code join(const char *folder, const char *file, char path[MAX_PATH], ol_error *err)
{
    if (snprintf(path, MAX_PATH, "%s/%s", folder, file) >= MAX_PATH)
        return ol_fail(err, OL_INVALID, "the path of \"%s\" is too long", file);
    return OL_OK;
}

static ol_code add_file(ol_safetensors *st, const char *folder, const char *file, ol_error *err)
{
    char path[MAX_PATH];

    if (st->n_shards == MAX_SHARDS)
        return ol_fail(err, OL_LIMIT, "more than %d .safetensors files in \"%s\"", MAX_SHARDS,
                       folder);
    OL_TRY(join(folder, file, path, err));
    return ol_safetensors_add(st, path, err);
}

/* -- with an index ------------------------------------------------------------------- */

/* `files` collects the distinct names, in order. */
static ol_code list_files(json_t *map, const char *index, json_t *files, ol_error *err)
{
    const char *tensor;
    json_t *value;

    json_object_foreach(map, tensor, value)
    {
        const char *file = json_string_value(value);

        if (!plain_file_name(file))
            return ol_safetensors_bad(err, index, tensor,
                                      "is said to be in a file of no valid name");
        if (json_object_set_new(files, file, json_true()) != 0)
            return ol_fail_nomem(err, strlen(file), index);
    }
    return OL_OK;
}

static ol_code compare(const ol_safetensors *st, json_t *map, const char *index, ol_error *err)
{
    const char *tensor;
    json_t *value;

    for (size_t i = 0; i < st->n; i++)
        if (!json_object_get(map, st->entries[i].name))
            return ol_safetensors_bad(err, index, st->entries[i].name,
                                      "is in a shard but not in the index");
    json_object_foreach(map, tensor, value)
    {
        if (!ol_safetensors_find(st, tensor))
            return ol_safetensors_bad(err, index, tensor, "is in the index but in no shard");
    }
    return OL_OK;
}

static ol_code open_listed(ol_safetensors *st, const char *folder, json_t *map, json_t *files,
                           const char *index, ol_error *err)
{
    const char *file;
    json_t *value;

    OL_TRY(list_files(map, index, files, err));
    json_object_foreach(files, file, value)
    {
        OL_TRY(add_file(st, folder, file, err));
    }
    OL_TRY(ol_safetensors_finish(st, index, err));
    return compare(st, map, index, err);
}

static ol_code open_index(ol_safetensors *st, const char *folder, const char *index, ol_error *err)
{
    ol_map file;
    json_t *root, *map, *files;
    ol_code code;

    OL_TRY(ol_map_open(index, &file, err));
    code = ol_json_object((const char *)file.data, file.len, index, &root, err);
    ol_map_close(&file);
    OL_TRY(code);
    map = json_object_get(root, "weight_map");
    files = json_object();
    if (!files)
        code = ol_fail_nomem(err, 0, index);
    else if (json_is_object(map))
        code = open_listed(st, folder, map, files, index, err);
    else
        code = ol_safetensors_bad(err, index, NULL, "has no weight_map");
    json_decref(files);
    json_decref(root);
    return code;
}

/* -- without one --------------------------------------------------------------------- */

static ol_code open_all(ol_safetensors *st, const char *folder, ol_error *err)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;
    ol_code code = OL_OK;

    if (!dir)
        return ol_fail_errno(err, "could not open folder", folder);
    while (code == OL_OK && (entry = readdir(dir)))
        if (plain_file_name(entry->d_name))
            code = add_file(st, folder, entry->d_name, err);
    closedir(dir);
    OL_TRY(code);
    if (st->n_shards == 0)
        return ol_fail(err, OL_NOT_FOUND, "there are no .safetensors files in \"%s\"", folder);
    return ol_safetensors_finish(st, folder, err);
}

static ol_code open_folder(ol_safetensors *st, const char *folder, ol_error *err)
{
    char path[MAX_PATH];

    OL_TRY(join(folder, "model.safetensors.index.json", path, err));
    if (access(path, F_OK) == 0)
        return open_index(st, folder, path, err);
    OL_TRY(join(folder, "model.safetensors", path, err));
    if (access(path, F_OK) != 0)
        return open_all(st, folder, err);
    OL_TRY(ol_safetensors_add(st, path, err));
    return ol_safetensors_finish(st, path, err);
}

ol_code ol_safetensors_open_folder(const char *folder, ol_safetensors **out, ol_error *err)
{
    ol_safetensors *st = NULL;

    OL_TRY(ol_safetensors_create(MAX_SHARDS, &st, err));
    if (open_folder(st, folder, err) != OL_OK) {
        ol_safetensors_close(st);
        return err->code;
    }
    *out = st;
    return OL_OK;
}
