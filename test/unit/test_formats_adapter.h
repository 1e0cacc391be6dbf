/* test_formats_adapter.h: a small base and adapters for it, for the tests of adapters. */
#ifndef TEST_FORMATS_ADAPTER_H
#define TEST_FORMATS_ADAPTER_H

#include "test_formats_util.h"

#include "engine/formats/adapter_file.h"

#define L0 "base_model.model.model.layers.0."

/* 2 layers, hidden 8, heads 2 x 4, one key-value head, feed-forward 12. */
static inline ol_model_config base_model(bool interleaved)
{
    ol_model_config c = {.family = OL_FAMILY_LLAMA,
                         .vocab = 10,
                         .hidden = 8,
                         .n_layers = 2,
                         .n_heads = 2,
                         .n_kv_heads = 1,
                         .head_dim = 4,
                         .ffn = 12,
                         .max_position = 64,
                         .norm_eps = 1e-5f};

    c.rope.theta = 10000;
    c.rope.dims = 4;
    c.rope.interleaved = interleaved;
    return c;
}

static inline void add_module(st_builder *b, int layer, ol_module module, int rank,
                              const char *dtype)
{
    ol_model_config c = base_model(false);
    int64_t out, in;
    char name[160];

    ol_module_shape(&c, module, &out, &in);
    snprintf(name, sizeof(name), "base_model.model.model.layers.%d.%s.%s.lora_A.weight", layer,
             ol_module_in_attention(module) ? "self_attn" : "mlp", ol_module_name(module));
    st_add(b, name, dtype, rank, in);
    strstr(name, "lora_A")[5] = 'B';
    st_add(b, name, dtype, out, rank);
}

/* q and v of both layers. */
static inline ol_buf q_and_v(int rank, const char *dtype)
{
    st_builder b = {0};

    for (int layer = 0; layer < 2; layer++) {
        add_module(&b, layer, OL_MOD_V, rank, dtype);
        add_module(&b, layer, OL_MOD_Q, rank, dtype);
    }
    return st_end(&b);
}

typedef struct parsed {
    ol_arena *arena;
    ol_adapter_file file;
    ol_error err;
    ol_code code;
} parsed;

static inline parsed parse(const ol_buf *weights, const char *config, const ol_model_config *base)
{
    ol_adapter_bytes bytes = {weights->data, weights->len, config, strlen(config)};
    parsed p = {.arena = ol_arena_create()};

    p.code = ol_adapter_file_parse(&bytes, base, p.arena, &p.file, &p.err);
    return p;
}

#define QV                                                                                         \
    "\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":8,\"target_modules\":[\"q_proj\",\"v_proj\"]"

#endif
