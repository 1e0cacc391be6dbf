/*
 * test_formats_mutation.c: small valid files, cut and with bits flipped, thousands of
 * times with a fixed seed. Nothing is asserted but that the parsers return: the
 * sanitizers of `make check-asan` see the rest. Files lie at the end of an exact
 * allocation, so that a read past them is seen.
 */
#include "test_formats_util.h"

#include "engine/formats/adapter_file.h"
#include "engine/formats/gguf_config.h"
#include "engine/formats/hfconfig.h"
#include "engine/formats/safetensors.h"

#define ROUNDS 6000

static uint64_t random_state;

static uint32_t next_random(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

/* A copy with 1 to 8 changes; the size changes in one case of four. */
static ol_buf mutate(const ol_buf *original)
{
    ol_buf copy = {.len = original->len};
    uint32_t changes = 1 + next_random() % 8;

    if (next_random() % 4 == 0)
        copy.len = next_random() % (original->len + 1);
    copy.data = malloc(copy.len ? copy.len : 1);
    memcpy(copy.data, original->data, copy.len);
    for (uint32_t i = 0; i < changes && copy.len; i++) {
        /* headers are where it hurts: two of three changes go to the first part */
        size_t range = next_random() % 3 ? copy.len / 2 + 1 : copy.len;
        size_t at = next_random() % range;

        switch (next_random() % 4) {
        case 0:
            copy.data[at % copy.len] ^= (uint8_t)(1u << next_random() % 8);
            break;
        case 1:
            copy.data[at % copy.len] = (uint8_t)next_random();
            break;
        case 2:
            copy.data[at % copy.len] = (uint8_t)("0123456789-{}[]\",:eE\\"[next_random() % 21]);
            break;
        default:
            memset(copy.data + at % copy.len, next_random() % 2 ? 0xFF : 0,
                   copy.len - at % copy.len < 8 ? copy.len - at % copy.len : 8);
        }
    }
    return copy;
}

typedef void (*target)(const ol_buf *file);

static int accepted;

static void run(const char *name, ol_buf file, target try)
{
    random_state = 20240601;
    accepted = 0;
    try(&file);
    assert_int_equal(accepted, 1); /* the original is fine */
    for (int i = 0; i < ROUNDS; i++) {
        ol_buf changed = mutate(&file);

        try(&changed);
        free(changed.data);
    }
    print_message("%s: %d of %d changed files were accepted\n", name, accepted - 1, ROUNDS);
    assert_true(accepted < ROUNDS);
    ol_buf_free(&file);
}

/* -- targets ---------------------------------------------------------------------------- */

static void try_safetensors(const ol_buf *file)
{
    ol_safetensors *st;
    ol_error err;
    volatile uint8_t sum = 0;

    if (ol_safetensors_bytes(file->data, file->len, "x", 0, &st, &err) != OL_OK)
        return;
    accepted++;
    for (size_t i = 0; i < ol_safetensors_count(st); i++) {
        ol_tensor t;

        if (ol_safetensors_get(st, ol_safetensors_at(st, i)->name, &t, &err) == OL_OK)
            for (size_t k = 0; k < t.bytes; k++)
                sum = (uint8_t)(sum + ((const uint8_t *)t.data)[k]);
    }
    ol_safetensors_close(st);
}

static void try_gguf(const ol_buf *file)
{
    ol_gguf *g;
    ol_error err;
    ol_model_config config;
    volatile uint8_t sum = 0;

    if (ol_gguf_bytes(file->data, file->len, "x", &g, &err) != OL_OK)
        return;
    accepted++;
    for (size_t i = 0; i < ol_gguf_entries(g); i++) {
        const char *key = ol_gguf_entry_at(g, i)->key;
        const ol_gguf_str *strings;
        const float *floats;
        const int32_t *ints;
        size_t n;

        if (ol_gguf_string_array(g, key, &strings, &n, &err) == OL_OK)
            for (size_t k = 0; k < n; k++)
                for (size_t c = 0; c < strings[k].len; c++)
                    sum = (uint8_t)(sum + (uint8_t)strings[k].ptr[c]);
        (void)ol_gguf_f32_array(g, key, &floats, &n, &err);
        (void)ol_gguf_i32_array(g, key, &ints, &n, &err);
    }
    for (size_t i = 0; i < ol_gguf_tensors(g); i++) {
        ol_tensor t;

        if (ol_gguf_get(g, ol_gguf_tensor_at(g, i)->name, &t, &err) == OL_OK)
            for (size_t k = 0; k < t.bytes; k++)
                sum = (uint8_t)(sum + ((const uint8_t *)t.data)[k]);
    }
    (void)ol_gguf_config(g, &config, &err);
    ol_gguf_close(g);
}

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

static const char peft_config[] =
    "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":8,\"use_rslora\":true,\"bias\":\"none\","
    "\"target_modules\":\".*\\\\.q_proj\",\"layers_to_transform\":null,"
    "\"rank_pattern\":{\"layers.1.self_attn.q_proj\":2,\"model[.]x.*\":7},"
    "\"alpha_pattern\":{\"q_proj\":4.5},\"exclude_modules\":[\"v_proj\"],\"use_dora\":false}";

static ol_buf adapter_weights(void)
{
    static const char prefix[] = "base_model.model.model.layers";
    st_builder b = {0};
    char name[128];

    for (int layer = 0; layer < 2; layer++) {
        snprintf(name, sizeof(name), "%s.%d.self_attn.q_proj.lora_A.weight", prefix, layer);
        st_add(&b, name, "F32", 2, 8);
        snprintf(name, sizeof(name), "%s.%d.self_attn.q_proj.lora_B.weight", prefix, layer);
        st_add(&b, name, "BF16", 8, 2);
    }
    return st_end(&b);
}

static void try_adapter(const void *weights, size_t len, const char *config, size_t config_len)
{
    ol_adapter_bytes bytes = {weights, len, config, config_len};
    ol_arena *arena = ol_arena_create();
    ol_adapter_file file;
    ol_error err;

    accepted += ol_adapter_file_parse(&bytes, &base, arena, &file, &err) == OL_OK;
    (void)ol_adapter_file_parse(&bytes, NULL, arena, &file, &err);
    ol_arena_destroy(arena);
}

static void try_adapter_weights(const ol_buf *file)
{
    try_adapter(file->data, file->len, peft_config, strlen(peft_config));
}

static void try_adapter_config(const ol_buf *file)
{
    static ol_buf weights;

    if (!weights.data)
        weights = adapter_weights();
    try_adapter(weights.data, weights.len, (const char *)file->data, file->len);
}

static void try_gguf_adapter(const ol_buf *file)
{
    try_adapter(file->data, file->len, NULL, 0);
}

static void try_config(const ol_buf *file)
{
    ol_model_config config;
    ol_error err;
    float inv_freq[OL_MAX_HEAD_DIM / 2];

    if (ol_hfconfig_parse((const char *)file->data, file->len, "x", &config, &err) != OL_OK)
        return;
    accepted++;
    ol_rope_frequencies(&config, inv_freq);
    (void)ol_hfconfig_generation((const char *)file->data, file->len, "x", &config, &err);
}

/* -- files --------------------------------------------------------------------------------- */

static ol_buf text(const char *json)
{
    ol_buf buf = {0};

    ol_buf_put(&buf, json, strlen(json));
    return buf;
}

static void test_safetensors(void **state)
{
    (void)state;
    run("safetensors", adapter_weights(), try_safetensors);
}

static void test_adapters(void **state)
{
    (void)state;
    run("adapter weights", adapter_weights(), try_adapter_weights);
    run("adapter config", text(peft_config), try_adapter_config);
}

static void test_config(void **state)
{
    (void)state;
    run("config",
        text("{\"model_type\":\"qwen2\",\"vocab_size\":100,\"hidden_size\":64,"
             "\"num_hidden_layers\":4,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
             "\"intermediate_size\":96,\"max_position_embeddings\":2048,\"eos_token_id\":[2,5],"
             "\"use_sliding_window\":true,\"sliding_window\":16,\"max_window_layers\":2,"
             "\"rope_theta\":1e6,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,"
             "\"original_max_position_embeddings\":512},\"layer_types\":[\"full_attention\","
             "\"sliding_attention\",\"full_attention\",\"sliding_attention\"]}"),
        try_config);
}

static void test_gguf(void **state)
{
    gg_builder b = {0};

    (void)state;
    gg_str(&b, "general.architecture", "llama");
    gg_u32(&b, "llama.embedding_length", 8);
    gg_u32(&b, "llama.block_count", 2);
    gg_u32(&b, "llama.attention.head_count", 2);
    gg_u32(&b, "llama.feed_forward_length", 12);
    gg_u32(&b, "llama.context_length", 64);
    gg_f32(&b, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gg_key(&b, "tokenizer.ggml.tokens", 9);
    ol_buf_put_u32(&b.meta, 8);
    ol_buf_put_u64(&b.meta, 2);
    gg_put_str(&b.meta, "<s>");
    gg_put_str(&b.meta, "a");
    gg_key(&b, "tokenizer.ggml.scores", 9);
    ol_buf_put_u32(&b.meta, 6);
    ol_buf_put_u64(&b.meta, 2);
    ol_buf_put_u64(&b.meta, 0);
    gg_tensor(&b, "token_embd.weight", 8, 2);
    gg_tensor(&b, "rope_freqs.weight", 2, 0);
    run("gguf", gg_end(&b), try_gguf);
}

static void test_gguf_adapter(void **state)
{
    gg_builder b = {0};

    (void)state;
    gg_str(&b, "general.architecture", "llama");
    gg_str(&b, "general.type", "adapter");
    gg_str(&b, "adapter.type", "lora");
    gg_f32(&b, "adapter.lora.alpha", 8);
    gg_tensor(&b, "blk.1.attn_q.weight.lora_a", 8, 2);
    gg_tensor(&b, "blk.1.attn_q.weight.lora_b", 2, 8);
    run("gguf adapter", gg_end(&b), try_gguf_adapter);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safetensors),  cmocka_unit_test(test_adapters),
        cmocka_unit_test(test_config),       cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_gguf_adapter),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
