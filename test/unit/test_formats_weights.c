/* test_formats_weights.c: whole models in folders and GGUF files: found, checked, hashed. */
#include "test_formats_util.h"

#include "engine/formats/weights.h"

#define CONFIG                                                                                     \
    "{\"model_type\":\"llama\",\"vocab_size\":10,\"hidden_size\":8,\"num_hidden_layers\":2,"       \
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"intermediate_size\":12,"                \
    "\"max_position_embeddings\":64%s}"

/* The tensors of CONFIG; `skip` is left out, `extra` added (unaligned when `odd`). */
static ol_buf tensors(const char *skip, const char *extra, bool odd)
{
    static const struct {
        const char *name;
        int rows, cols;
    } layer[] = {{"input_layernorm.weight", 8, 0},  {"post_attention_layernorm.weight", 8, 0},
                 {"self_attn.q_proj.weight", 8, 8}, {"self_attn.k_proj.weight", 4, 8},
                 {"self_attn.v_proj.weight", 4, 8}, {"self_attn.o_proj.weight", 8, 8},
                 {"mlp.gate_proj.weight", 12, 8},   {"mlp.up_proj.weight", 12, 8},
                 {"mlp.down_proj.weight", 8, 12}};
    st_builder b = {0};
    char name[128];

    if (odd)
        st_add(&b, "a.rotary_emb.inv_freq", "F16", 1, 0); /* shifts what follows */
    st_add(&b, "model.embed_tokens.weight", "F32", 10, 8);
    for (int i = 0; i < 2; i++)
        for (size_t k = 0; k < sizeof(layer) / sizeof(layer[0]); k++) {
            snprintf(name, sizeof(name), "model.layers.%d.%s", i, layer[k].name);
            if (!skip || strcmp(name, skip) != 0)
                st_add(&b, name, "F32", layer[k].rows, layer[k].cols);
        }
    st_add(&b, "model.norm.weight", "F32", 8, 0);
    st_add(&b, "lm_head.weight", "F32", 10, 8);
    if (extra)
        st_add(&b, extra, "F32", 8, 0);
    return st_end(&b);
}

static ol_model_source *open_model(const char *folder, const char *config_more, ol_buf file)
{
    char config[512];
    ol_model_source *src;
    ol_error err;

    snprintf(config, sizeof(config), CONFIG, config_more);
    write_text(folder, "config.json", config);
    write_file(folder, "model.safetensors", file.data, file.len);
    ol_buf_free(&file);
    expect_ok(ol_model_source_open(folder, &src, &err), &err);
    return src;
}

typedef struct counts {
    int fatal, harmless;
} counts;

static void count_finding(void *context, bool fatal, const ol_error *finding)
{
    counts *c = context;

    assert_int_not_equal(finding->message[0], 0);
    c->fatal += fatal;
    c->harmless += !fatal;
}

static void test_folder(void **state)
{
    char folder[64];
    ol_model_source *src;
    ol_error err;
    ol_tensor t;
    counts c = {0};

    (void)state;
    make_folder(folder);
    src = open_model(folder, ",\"eos_token_id\":3", tensors(NULL, NULL, false));
    expect_ok(ol_model_source_check(src, count_finding, &c, &err), &err);
    assert_int_equal(c.fatal + c.harmless, 0);
    assert_int_equal(ol_model_source_kind(src), OL_MODEL_FOLDER);
    assert_string_equal(ol_model_source_format(src), "safetensors F32");
    assert_string_equal(ol_model_source_name(src), strrchr(folder, '/') + 1);
    assert_int_equal(ol_model_source_parameters(src) * 4, ol_model_source_bytes(src));
    expect_ok(ol_model_source_tensor(src, OL_ROLE_LINEAR + OL_MOD_DOWN, 1, &t, &err), &err);
    assert_string_equal(t.name, "model.layers.1.mlp.down_proj.weight");
    assert_int_equal(t.shape[1], 12);
    expect_ok(ol_model_source_tensor(src, OL_ROLE_HEAD, 0, &t, &err), &err);
    assert_string_equal(t.name, "lm_head.weight");
    expect_error(ol_model_source_tensor(src, OL_ROLE_BIAS + OL_MOD_Q, 0, &t, &err), OL_NOT_FOUND,
                 &err, "q_proj.bias");
    expect_error(ol_model_source_tensor(src, OL_ROLE_ATTN_NORM, 2, &t, &err), OL_NOT_FOUND, &err,
                 "layers.2");
    ol_model_source_close(src);
    remove_folder(folder);
}

static void test_findings(void **state)
{
    char folder[64];
    ol_model_source *src;
    ol_error err;
    counts c = {0};

    (void)state;
    make_folder(folder);
    src = open_model(folder, "", tensors("model.layers.1.mlp.up_proj.weight", NULL, false));
    expect_error(ol_model_source_check(src, count_finding, &c, &err), OL_NOT_FOUND, &err,
                 "layers.1.mlp.up_proj.weight");
    assert_int_equal(c.fatal, 1);
    ol_model_source_close(src);
    src = open_model(folder, "", tensors(NULL, "model.layers.0.self_attn.q_proj.bias", false));
    expect_error(ol_model_source_check(src, NULL, NULL, &err), OL_UNSUPPORTED, &err, "q_proj.bias");
    ol_model_source_close(src);
    src = open_model(folder, ",\"head_dim\":8", tensors(NULL, NULL, false));
    c = (counts){0};
    expect_error(ol_model_source_check(src, count_finding, &c, &err), OL_CORRUPT, &err, "16 x 8");
    assert_int_equal(c.fatal, 8); /* q, k, v, o of two layers */
    ol_model_source_close(src);
    src = open_model(folder, ",\"tie_word_embeddings\":true", tensors(NULL, NULL, true));
    c = (counts){0};
    expect_ok(ol_model_source_check(src, count_finding, &c, &err), &err);
    assert_int_equal(c.harmless, 2); /* the stored head, the buffer */
    ol_model_source_close(src);
    remove_folder(folder);
}

static void test_alignment_and_ties(void **state)
{
    char folder[64];
    ol_model_source *src;
    ol_error err;
    ol_tensor t;

    (void)state;
    make_folder(folder);
    src = open_model(folder, ",\"tie_word_embeddings\":true", tensors(NULL, NULL, true));
    expect_ok(ol_model_source_tensor(src, OL_ROLE_HEAD, 0, &t, &err), &err);
    assert_string_equal(t.name, "model.embed_tokens.weight");
    assert_int_equal((uintptr_t)t.data % 4, 0);
    assert_true(((const float *)t.data)[79] == 80.0f);
    ol_model_source_close(src);
    remove_folder(folder);
}

static void digest_of(const char *folder, const char *more, ol_buf file, ol_digest *digest)
{
    ol_model_source *src = open_model(folder, more, file);
    ol_error err;

    expect_ok(ol_model_source_digest(src, NULL, NULL, digest, &err), &err);
    ol_model_source_close(src);
}

static void test_digest(void **state)
{
    char folder[64];
    ol_digest one, two;
    ol_buf file;

    (void)state;
    make_folder(folder);
    digest_of(folder, "", tensors(NULL, NULL, false), &one);
    digest_of(folder, "", tensors(NULL, NULL, false), &two);
    assert_true(ol_digest_equal(&one, &two));
    digest_of(folder, ",\"eos_token_id\":3", tensors(NULL, NULL, false), &two);
    assert_false(ol_digest_equal(&one, &two));
    file = tensors(NULL, NULL, false);
    file.data[file.len - 1] ^= 1;
    digest_of(folder, "", file, &two);
    assert_false(ol_digest_equal(&one, &two));
    digest_of(folder, "", tensors(NULL, "x.rotary_emb.inv_freq", false), &two);
    assert_false(ol_digest_equal(&one, &two));
    remove_folder(folder);
}

static ol_buf gguf_model(bool adapter, uint64_t q_rows)
{
    static const struct {
        const char *name;
        int ne0, ne1;
    } layer[] = {{"attn_norm", 8, 0}, {"ffn_norm", 8, 0},    {"attn_k", 8, 4},
                 {"attn_v", 8, 4},    {"attn_output", 8, 8}, {"ffn_gate", 8, 12},
                 {"ffn_up", 8, 12},   {"ffn_down", 12, 8}};
    gg_builder b = {0};
    char name[64];

    gg_str(&b, "general.architecture", "llama");
    gg_str(&b, "general.name", "Tiny");
    gg_str(&b, "general.type", adapter ? "adapter" : "model");
    gg_u32(&b, "llama.embedding_length", 8);
    gg_u32(&b, "llama.block_count", 1);
    gg_u32(&b, "llama.attention.head_count", 2);
    gg_u32(&b, "llama.attention.head_count_kv", 1);
    gg_u32(&b, "llama.feed_forward_length", 12);
    gg_u32(&b, "llama.context_length", 64);
    gg_f32(&b, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gg_tensor(&b, "token_embd.weight", 8, 10);
    gg_tensor(&b, "output_norm.weight", 8, 0);
    gg_tensor(&b, "rope_freqs.weight", 2, 0);
    gg_tensor(&b, "blk.0.attn_q.weight", 8, q_rows);
    for (size_t k = 0; k < sizeof(layer) / sizeof(layer[0]); k++) {
        snprintf(name, sizeof(name), "blk.0.%s.weight", layer[k].name);
        gg_tensor(&b, name, (uint64_t)layer[k].ne0, (uint64_t)layer[k].ne1);
    }
    return gg_end(&b);
}

static ol_code open_gguf(const char *folder, ol_buf file, ol_model_source **src, ol_error *err)
{
    char path[128];

    write_file(folder, "m.gguf", file.data, file.len);
    ol_buf_free(&file);
    snprintf(path, sizeof(path), "%s/m.gguf", folder);
    return ol_model_source_open(path, src, err);
}

static void test_gguf(void **state)
{
    char folder[64];
    ol_model_source *src;
    ol_error err;
    ol_tensor t;
    ol_digest digest;
    counts c = {0};

    (void)state;
    make_folder(folder);
    expect_ok(open_gguf(folder, gguf_model(false, 8), &src, &err), &err);
    expect_ok(ol_model_source_check(src, count_finding, &c, &err), &err);
    assert_int_equal(c.fatal, 0);
    assert_string_equal(ol_model_source_name(src), "Tiny");
    assert_string_equal(ol_model_source_format(src), "GGUF F32");
    assert_non_null(ol_model_source_gguf(src));
    expect_ok(ol_model_source_tensor(src, OL_ROLE_LINEAR + OL_MOD_DOWN, 0, &t, &err), &err);
    assert_int_equal(t.shape[0], 8);
    assert_int_equal(t.shape[1], 12);
    expect_ok(ol_model_source_tensor(src, OL_ROLE_HEAD, 0, &t, &err), &err);
    assert_string_equal(t.name, "token_embd.weight");
    expect_ok(ol_model_source_digest(src, NULL, NULL, &digest, &err), &err);
    ol_model_source_close(src);
    expect_ok(open_gguf(folder, gguf_model(false, 4), &src, &err), &err);
    expect_error(ol_model_source_check(src, NULL, NULL, &err), OL_CORRUPT, &err, "attn_q");
    ol_model_source_close(src);
    expect_error(open_gguf(folder, gguf_model(true, 8), &src, &err), OL_INVALID, &err, "adapter");
    remove_folder(folder);
}

static void test_paths(void **state)
{
    char folder[64], path[5000];
    ol_model_source *src;
    ol_error err;

    (void)state;
    make_folder(folder);
    expect_error(ol_model_source_open(folder, &src, &err), OL_NOT_FOUND, &err, "config.json");
    expect_error(ol_model_source_open("/nonexistent/model", &src, &err), OL_NOT_FOUND, &err,
                 "/nonexistent/model");
    memset(path, 'a', sizeof(path));
    path[sizeof(path) - 1] = '\0';
    expect_error(ol_model_source_open(path, &src, &err), OL_INVALID, &err, "too long");
    write_text(folder, "m.gguf", "");
    snprintf(path, sizeof(path), "%s/m.gguf", folder);
    expect_error(ol_model_source_open(path, &src, &err), OL_CORRUPT, &err, "magic");
    remove_folder(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_folder),
        cmocka_unit_test(test_findings),
        cmocka_unit_test(test_alignment_and_ties),
        cmocka_unit_test(test_digest),
        cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_paths),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
