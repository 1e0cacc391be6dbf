/*
 * fuzz_adapter.c: an adapter as an SQL user could insert it. The input is adapter_config.json,
 * a zero byte, and the weights; without a zero byte, a GGUF adapter.
 */
#include "engine/formats/adapter_file.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const ol_model_config base = {.family = OL_FAMILY_LLAMA,
                                     .vocab = 10,
                                     .hidden = 8,
                                     .n_layers = 2,
                                     .n_heads = 2,
                                     .n_kv_heads = 1,
                                     .head_dim = 4,
                                     .ffn = 12,
                                     .max_position = 64,
                                     .norm_eps = 1e-5f,
                                     .rope = {.dims = 4, .theta = 10000}};

static void parse(const void *weights, size_t len, const char *config, size_t config_len)
{
    const ol_model_config *bases[] = {&base, NULL};
    ol_adapter_bytes bytes = {weights, len, config, config_len};

    for (int i = 0; i < 2; i++) {
        ol_arena *arena = ol_arena_create();
        ol_adapter_file file;
        ol_error err;

        if (arena)
            (void)ol_adapter_file_parse(&bytes, bases[i], arena, &file, &err);
        ol_arena_destroy(arena);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;

    if (size >= 4 && memcmp(data, "GGUF", 4) == 0)
        parse(data, size, NULL, 0);
    else if (zero)
        parse(zero + 1, size - (size_t)(zero + 1 - data), (const char *)data,
              (size_t)(zero - data));
    return 0;
}
