/* adapter_file.c: see adapter_file.h. */
#include "engine/formats/adapter_file.h"

#include "engine/formats/adapter_build.h"
#include "engine/formats/gguf.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

void ol_adapter_digest(const void *weights, size_t weights_len, const char *config,
                       size_t config_len, ol_digest *digest)
{
    static const char tag[] = "openlora.adapter.1"; /* its zero byte counts */
    ol_sha256 *sha = ol_sha256_begin();
    uint8_t len[8];

    *digest = (ol_digest){{0}};
    if (!sha)
        return;
    for (int i = 0; i < 8; i++)
        len[i] = (uint8_t)((uint64_t)weights_len >> 8 * i);
    ol_sha256_add(sha, tag, sizeof(tag));
    ol_sha256_add(sha, len, sizeof(len));
    ol_sha256_add(sha, weights, weights_len);
    ol_sha256_add(sha, config, config_len);
    ol_sha256_end(sha, digest);
}

/* torch.save writes a zip archive, formerly a bare pickle. Both may look like the length
 * of a safetensors header, which a brace follows. */
static bool is_pickle(const uint8_t *bytes, size_t len)
{
    if (len >= 9 && bytes[8] == '{')
        return false;
    return (len >= 4 && memcmp(bytes, "PK\3\4", 4) == 0) ||
           (len >= 2 && bytes[0] == 0x80 && bytes[1] <= 5);
}

ol_code ol_adapter_file_parse(const ol_adapter_bytes *b, const ol_model_config *base,
                              ol_arena *arena, ol_adapter_file *out, ol_error *err)
{
    return ol_adapter_file_parse_within(b, base, 0, arena, out, err);
}

ol_code ol_adapter_file_parse_within(const ol_adapter_bytes *b, const ol_model_config *base,
                                     size_t most, ol_arena *arena, ol_adapter_file *out,
                                     ol_error *err)
{
    ol_adapter_build *build;

    *out = (ol_adapter_file){0};
    if (b->weights_len == 0)
        return ol_fail(err, OL_CORRUPT, "the adapter is empty");
    if (is_pickle(b->weights, b->weights_len)) {
        ol_fail(err, OL_UNSUPPORTED, "the adapter is a pickle file (.bin or .pt)");
        return ol_hint(err, "Pickle files can run code when read. Save the adapter as safetensors: "
                            "save_pretrained(..., safe_serialization=True).");
    }
    if (b->config_len > OL_MAX_ADAPTER_CONFIG)
        return ol_fail(err, OL_LIMIT, "adapter_config.json is larger than %zu bytes",
                       OL_MAX_ADAPTER_CONFIG);
    build = ol_arena_alloc(arena, sizeof(*build));
    if (!build)
        return ol_fail_nomem(err, sizeof(*build), "adapter");
    build->base = base;
    build->most = most;
    build->arena = arena;
    build->err = err;
    if (!ol_gguf_magic(b->weights, b->weights_len))
        return ol_peft_parse(b->weights, b->weights_len, b->config, b->config_len, build, out);
    if (b->config_len)
        return ol_fail(err, OL_INVALID, "a GGUF adapter takes no adapter_config.json");
    return ol_gguf_lora_parse(b->weights, b->weights_len, build, out);
}

/* -- on disk ------------------------------------------------------------------------- */

static ol_code open_folder(const char *folder, ol_adapter_disk *disk, ol_error *err)
{
    char path[4096];
    struct stat st;

    if (snprintf(path, sizeof(path), "%s/adapter_model.safetensors", folder) >= (int)sizeof(path))
        return ol_fail(err, OL_INVALID, "the path of the adapter is too long");
    if (stat(path, &st) != 0) {
        char pickle[4096 + 16];

        snprintf(pickle, sizeof(pickle), "%s/adapter_model.bin", folder);
        if (stat(pickle, &st) == 0) {
            ol_fail(err, OL_UNSUPPORTED, "\"%s\" is a pickle file", pickle);
            return ol_hint(err, "Save the adapter as safetensors: "
                                "save_pretrained(..., safe_serialization=True).");
        }
    }
    OL_TRY(ol_map_open(path, &disk->weights, err));
    snprintf(path, sizeof(path), "%s/adapter_config.json", folder);
    return ol_map_open(path, &disk->config, err);
}

ol_code ol_adapter_disk_open(const char *path, ol_adapter_disk *disk, ol_error *err)
{
    struct stat st;
    ol_code code;

    *disk = (ol_adapter_disk){0};
    if (stat(path, &st) != 0)
        return ol_fail_errno(err, "could not open", path);
    code =
        S_ISDIR(st.st_mode) ? open_folder(path, disk, err) : ol_map_open(path, &disk->weights, err);
    if (code == OL_OK && !S_ISDIR(st.st_mode) &&
        !ol_gguf_magic(disk->weights.data, disk->weights.len)) {
        code = ol_fail(err, OL_INVALID, "\"%s\" is neither a GGUF file nor a folder", path);
        ol_hint(err, "Name the folder that holds adapter_model.safetensors and "
                     "adapter_config.json, or a .gguf file.");
    }
    if (code != OL_OK)
        ol_adapter_disk_close(disk);
    return code;
}

void ol_adapter_disk_close(ol_adapter_disk *disk)
{
    ol_map_close(&disk->weights);
    ol_map_close(&disk->config);
}

ol_code ol_adapter_read_path(const char *path, const ol_model_config *base, ol_arena *arena,
                             ol_adapter_disk *disk, ol_adapter_file *out, ol_error *err)
{
    ol_adapter_bytes bytes;

    OL_TRY(ol_adapter_disk_open(path, disk, err));
    bytes = (ol_adapter_bytes){disk->weights.data, disk->weights.len,
                               (const char *)disk->config.data, disk->config.len};
    if (ol_adapter_file_parse(&bytes, base, arena, out, err) != OL_OK) {
        ol_adapter_disk_close(disk);
        return ol_prefix(err, "%s", path);
    }
    return OL_OK;
}
