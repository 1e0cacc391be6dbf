/* test_formats_adapter.c: PEFT adapters, good and hostile. */
#include "test_formats_adapter.h"

#include <math.h>

static void test_plain(void **state)
{
    ol_buf weights = q_and_v(2, "F32");
    ol_model_config base = base_model(false);
    parsed p =
        parse(&weights, "{" QV ",\"base_model_name_or_path\":\"tiny\",\"bias\":\"none\"}", &base);

    (void)state;
    expect_ok(p.code, &p.err);
    assert_int_equal(p.file.format, OL_ADAPTER_PEFT);
    assert_int_equal(p.file.n_modules, 4);
    assert_int_equal(p.file.modules[0].module, OL_MOD_Q); /* order is by layer, then module */
    assert_int_equal(p.file.modules[1].module, OL_MOD_V);
    assert_int_equal(p.file.modules[3].layer, 1);
    assert_int_equal(p.file.max_rank, 2);
    assert_true(p.file.modules[0].scale == 4.0f);
    assert_int_equal(p.file.module_mask, 1u << OL_MOD_Q | 1u << OL_MOD_V);
    assert_int_equal(p.file.parameters, 2 * (2 * 8 + 8 * 2 + 2 * 8 + 4 * 2));
    assert_int_equal(p.file.tensor_bytes, p.file.parameters * 4);
    assert_string_equal(p.file.base_model, "tiny");
    assert_int_equal((uintptr_t)p.file.modules[0].a.data % 4, 0);
    ol_arena_destroy(p.arena);
    ol_buf_free(&weights);
}

/* Each configuration over q and v of both layers, rank 2, gives these scales. */
static void test_scales(void **state)
{
    static const struct {
        const char *config;
        float q0, v0, q1, v1;
    } cases[] = {
        {"\"r\":2,\"lora_alpha\":8,\"use_rslora\":true", 5.656854f, 5.656854f, 5.656854f,
         5.656854f},
        {"\"r\":2,\"lora_alpha\":3.5", 1.75f, 1.75f, 1.75f, 1.75f},
        {"\"r\":2", 4, 4, 4, 4}, /* the default alpha is 8 */
        {"\"r\":2,\"lora_alpha\":2,\"alpha_pattern\":{\"q_proj\":6}", 3, 1, 3, 1},
        {"\"r\":2,\"lora_alpha\":2,\"alpha_pattern\":{\"layers.1.self_attn.q_proj\":6}", 1, 1, 3,
         1},
        {"\"r\":2,\"lora_alpha\":2,\"alpha_pattern\":{\"model.layers.0.self_attn.v_proj\":6}", 1, 3,
         1, 1},
        {"\"r\":2,\"lora_alpha\":2,\"alpha_pattern\":{\"proj\":6}", 1, 1, 1, 1}, /* whole parts */
        {"\"r\":2,\"lora_alpha\":2,\"alpha_pattern\":{\"self_attn\":6}", 1, 1, 1, 1}, /* the end */
        {"\"r\":2,\"lora_alpha\":2,\"alpha_pattern\":{\"[qv]_proj\":6}", 3, 3, 3, 3},
        {"\"r\":2,\"lora_alpha\":2,\"alpha_pattern\":{\"layers\\\\.\\\\d\\\\..*v_proj\":6}", 1, 3,
         1, 3},
        {"\"r\":2,\"lora_alpha\":2,\"alpha_pattern\":{\"q.proj\":6}", 3, 1, 3, 1}, /* any one */
        {"\"r\":2,\"lora_alpha\":2,\"alpha_pattern\":{\"q_proj\":6,\"layers.0.self_attn.q_proj\":"
         "8}",
         3, 1, 3, 1}, /* the first that matches */
        {"\"r\":5,\"lora_alpha\":2,\"rank_pattern\":{\"q_proj\":2,\"v_proj\":2}", 1, 1, 1, 1},
        {"\"r\":2,\"lora_alpha\":0", 0, 0, 0, 0},
    };
    ol_buf weights = q_and_v(2, "BF16");
    ol_model_config base = base_model(false);
    char config[1024];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const float *want = &cases[i].q0;
        parsed p;

        snprintf(config, sizeof(config),
                 "{\"peft_type\":\"LORA\",\"target_modules\":[\"q_proj\",\"v_proj\"],%s}",
                 cases[i].config);
        p = parse(&weights, config, &base);
        expect_ok(p.code, &p.err);
        for (int m = 0; m < 4; m++)
            if (fabsf(p.file.modules[m].scale - want[m]) > 1e-5f)
                fail_msg("%s: module %d has scale %g", cases[i].config, m,
                         (double)p.file.modules[m].scale);
        ol_arena_destroy(p.arena);
    }
    ol_buf_free(&weights);
}

/* What targets exactly q and v of both layers, and what does not. */
static void test_targets(void **state)
{
    static const struct {
        const char *config, *word;
    } cases[] = {
        {"\"target_modules\":[\"self_attn.q_proj\",\"v_proj\",\"c_attn\"]", NULL},
        {"\"target_modules\":\".*\\\\.(q|v)_proj\"", NULL},
        {"\"target_modules\":\"all-linear\",\"exclude_modules\":\".*(k_proj|o_proj|mlp.*)\"", NULL},
        {"\"target_modules\":[\"q_proj\",\"k_proj\",\"v_proj\"],\"exclude_modules\":[\"k_proj\"]",
         NULL},
        {"\"target_modules\":[\"q_proj\",\"v_proj\"],\"layers_to_transform\":[0,1]", NULL},
        {"\"target_modules\":[\"q_proj\",\"v_proj\"],\"layers_to_transform\":[0,1],"
         "\"layers_pattern\":\"layers\"",
         NULL},
        {"\"target_modules\":[\"q_proj\",\"v_proj\"],\"layers_to_transform\":[]", NULL},
        {"\"target_modules\":[\"model.layers.0.self_attn.q_proj\",\"model.layers.1.self_attn.q_"
         "proj\","
         "\"v_proj\"],\"layers_to_transform\":[0,1]",
         NULL},
        {"\"target_modules\":[\"q_proj\"]", "layers.0.self_attn.v_proj"},
        {"\"target_modules\":[\"q_proj\",\"v_proj\",\"k_proj\"]", "layers.0.self_attn.k_proj"},
        {"\"target_modules\":\"all-linear\"", "k_proj"},
        {"\"target_modules\":\"q_proj|v_proj\"", "not targeted"}, /* the whole name must match */
        {"\"target_modules\":\".*(q|v)_pro\"", "not targeted"},
        {"\"target_modules\":[\"proj\"]", "not targeted"},
        {"\"target_modules\":[\"q_proj\",\"v_proj\"],\"layers_to_transform\":0", "layers.1"},
        {"\"target_modules\":[\"q_proj\",\"v_proj\"],\"layers_to_transform\":[0,1],"
         "\"layers_pattern\":[\"h\",\"blocks\"]",
         "not targeted"},
        {"\"target_modules\":[\"q_proj\",\"v_proj\"],\"exclude_modules\":[\"layers.1.self_attn.v_"
         "proj\"]",
         "layers.1.self_attn.v_proj"},
        {"\"target_modules\":[\"q_proj\",\"v_proj\",\"lm_head\"]", "lm_head"},
        {"\"target_modules\":[\"q_proj\",\"v_proj\",\"embed_tokens\"]", "embed_tokens"},
        {"\"target_modules\":null", "target_modules"},
        {"\"target_modules\":5", "target_modules"},
        {"\"target_modules\":[5]", "target_modules"},
        {"\"target_modules\":[]", "not targeted"},
        {"\"target_modules\":\"((\"", "regular expression"},
        {"\"target_modules\":\"([a-z]*[a-z0-9_.]*)*[XY]\"", "work"},
        {"\"target_modules\":\"all-linear\",\"layers_to_transform\":[1]", "layers_to_transform"},
        {"\"target_modules\":[\"q_proj\"],\"layers_pattern\":\"layers\"", "layers_pattern"},
        {"\"target_modules\":[\"q_proj\"],\"layers_to_transform\":[\"1\"]", "layers_to_transform"},
    };
    ol_buf weights = q_and_v(2, "F16");
    ol_model_config base = base_model(false);
    char config[1024];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        parsed p;

        snprintf(config, sizeof(config), "{\"peft_type\":\"LORA\",\"r\":2,%s}", cases[i].config);
        p = parse(&weights, config, &base);
        if (cases[i].word)
            expect_error(p.code, p.err.code, &p.err, cases[i].word);
        else
            expect_ok(p.code, &p.err);
        ol_arena_destroy(p.arena);
    }
    ol_buf_free(&weights);
}

static void test_fields(void **state)
{
    static const struct {
        const char *field, *word; /* NULL: harmless */
    } cases[] = {
        {"\"use_dora\":false,\"modules_to_save\":null,\"fan_in_fan_out\":false", NULL},
        {"\"lora_dropout\":0.1,\"revision\":\"main\",\"inference_mode\":true", NULL},
        {"\"init_lora_weights\":\"gaussian\",\"loftq_config\":{},\"eva_config\":null", NULL},
        {"\"megatron_core\":\"megatron.core\",\"qalora_group_size\":16,\"task_type\":null", NULL},
        {"\"something_new\":false,\"another\":null,\"third\":[],\"fourth\":{}", NULL},
        {"\"use_dora\":true", "use_dora"},
        {"\"lora_bias\":true", "lora_bias"},
        {"\"bias\":\"all\"", "bias"},
        {"\"bias\":\"lora_only\"", "bias"},
        {"\"modules_to_save\":[\"lm_head\"]", "modules_to_save"},
        {"\"trainable_token_indices\":[1]", "trainable_token_indices"},
        {"\"layer_replication\":[[0,2]]", "layer_replication"},
        {"\"use_qalora\":true", "use_qalora"},
        {"\"use_bdlora\":{\"nblocks\":2}", "use_bdlora"},
        {"\"megatron_config\":{\"a\":1}", "megatron_config"},
        {"\"alora_invocation_tokens\":[1,2]", "alora_invocation_tokens"},
        {"\"target_parameters\":[\"x\"]", "target_parameters"},
        {"\"fan_in_fan_out\":true", "fan_in_fan_out"},
        {"\"kasa_config\":{\"a\":1}", "kasa_config"},
        {"\"monteclora_config\":{\"a\":1}", "monteclora_config"},
        {"\"arrow_config\":{\"a\":1}", "arrow_config"},
        {"\"something_new\":1", "something_new"},
        {"\"task_type\":\"SEQ_CLS\"", "SEQ_CLS"},
        {"\"init_lora_weights\":\"pissa_niter_16\"", "pissa"},
        {"\"init_lora_weights\":\"olora\"", "olora"},
        {"\"rank_pattern\":{\"q_proj\":\"2\"}", "rank_pattern"},
        {"\"rank_pattern\":[2]", "rank_pattern"},
        {"\"rank_pattern\":{\"q_proj\":1.5}", "rank"},
        {"\"rank_pattern\":{\"q_proj\":0}", "rank"},
        {"\"alpha_pattern\":{\"q_proj\":1e300}", "alpha"},
        {"\"alpha_pattern\":{\"(\":1}", "regular expression"},
        {"\"use_rslora\":\"yes\"", "use_rslora"},
        {"\"r\":2", "duplicate"},
    };
    ol_buf weights = q_and_v(2, "F32");
    ol_model_config base = base_model(false);
    char config[1024];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        parsed p;

        snprintf(config, sizeof(config), "{" QV ",%s}", cases[i].field);
        p = parse(&weights, config, &base);
        if (cases[i].word)
            expect_error(p.code, p.err.code, &p.err, cases[i].word);
        else
            expect_ok(p.code, &p.err);
        ol_arena_destroy(p.arena);
    }
    ol_buf_free(&weights);
}

static void expect_weights_error(st_builder *b, ol_code code, const char *word)
{
    ol_model_config base = base_model(false);
    ol_buf weights = st_end(b);
    parsed p = parse(&weights, "{" QV "}", &base);

    expect_error(p.code, code, &p.err, word);
    ol_arena_destroy(p.arena);
    ol_buf_free(&weights);
    *b = (st_builder){0};
}

static void test_bad_tensors(void **state)
{
    static const char *const unexpected[] = {
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        L0 "self_attn.q_proj.lora_magnitude_vector",
        L0 "self_attn.q_proj.lora_B.bias",
        L0 "self_attn.q_proj.lora_A.other.weight",
        L0 "self_attn.q_proj.weight",
        L0 "mlp.q_proj.lora_A.weight",
        "base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.-1.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.99999999999.self_attn.q_proj.lora_A.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
    };
    st_builder b = {0};

    (void)state;
    for (size_t i = 0; i < sizeof(unexpected) / sizeof(unexpected[0]); i++) {
        st_add(&b, unexpected[i], "F32", 2, 8);
        expect_weights_error(&b, OL_UNSUPPORTED, unexpected[i]);
    }
    st_add(&b, "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight", "F32", 2, 8);
    expect_weights_error(&b, OL_MISMATCH, "2 layers");
    st_add(&b, L0 "self_attn.q_proj.lora_A.weight", "I64", 2, 8);
    expect_weights_error(&b, OL_UNSUPPORTED, "I64");
    st_add(&b, L0 "self_attn.q_proj.lora_A.weight", "F32", 2, 8);
    st_add(&b, L0 "self_attn.q_proj.lora_A.default.weight", "F32", 2, 8);
    expect_weights_error(&b, OL_CORRUPT, "same module");
    for (int layer = 0; layer < 2; layer++) {
        add_module(&b, layer, OL_MOD_Q, 2, "F32");
        if (layer == 0)
            add_module(&b, layer, OL_MOD_V, 2, "F32");
    }
    st_add(&b, "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight", "F32", 2, 8);
    expect_weights_error(&b, OL_CORRUPT, "lacks its B");
}

static void test_bad_shapes(void **state)
{
    static const struct {
        int a_rows, a_cols, b_rows, b_cols;
        const char *word;
    } cases[] = {
        {3, 8, 8, 3, "lora_A"}, {2, 7, 8, 2, "lora_A"}, {2, 8, 7, 2, "lora_B"},
        {2, 8, 8, 3, "lora_B"}, {8, 2, 2, 8, "lora_A"}, {2, 0, 8, 2, "lora_A"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        st_builder b = {0};

        st_add(&b, L0 "self_attn.q_proj.lora_A.weight", "F32", cases[i].a_rows, cases[i].a_cols);
        st_add(&b, L0 "self_attn.q_proj.lora_B.weight", "F32", cases[i].b_rows, cases[i].b_cols);
        add_module(&b, 0, OL_MOD_V, 2, "F32");
        add_module(&b, 1, OL_MOD_V, 2, "F32");
        add_module(&b, 1, OL_MOD_Q, 2, "F32");
        expect_weights_error(&b, OL_MISMATCH, cases[i].word);
    }
}

static void poison(const char *dtype, const void *bits, size_t size)
{
    ol_model_config base = base_model(false);
    ol_buf weights = q_and_v(2, dtype);
    parsed p;

    memcpy(weights.data + weights.len - size, bits, size);
    p = parse(&weights, "{" QV "}", &base);
    expect_error(p.code, OL_CORRUPT, &p.err, "layers.1.self_attn.q_proj\" holds NaN");
    ol_arena_destroy(p.arena);
    ol_buf_free(&weights);
}

static void test_not_finite(void **state)
{
    (void)state;
    poison("F32", &(uint32_t){0x7FC00000}, 4);
    poison("F32", &(uint32_t){0xFF800000}, 4);
    poison("F16", &(uint16_t){0x7C00}, 2);
    poison("F16", &(uint16_t){0xFE01}, 2);
    poison("BF16", &(uint16_t){0x7F80}, 2);
    poison("BF16", &(uint16_t){0xFFC0}, 2);
}

static void test_other_bytes(void **state)
{
    static const struct {
        const char *bytes, *config, *word;
    } cases[] = {{"PK\3\4aaaa", "{}", "pickle"},
                 {"\200\2abc", "{}", "pickle"},
                 {"", "{}", "empty"},
                 {"12345678", "", "configuration"},
                 {"12345678", "{" QV "}", "past"},
                 {"12345678", "[", "JSON"},
                 {"GGUFxxxxxxxxxxxx", "{}", "GGUF adapter takes no"}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ol_buf weights = {.data = (uint8_t *)(uintptr_t)cases[i].bytes,
                          .len = strlen(cases[i].bytes)};
        parsed p = parse(&weights, cases[i].config, NULL);

        expect_error(p.code, p.err.code, &p.err, cases[i].word);
        ol_arena_destroy(p.arena);
    }
}

/* Bytes from a table row can lie at any address. */
static void test_unaligned(void **state)
{
    ol_buf weights = q_and_v(2, "F32");
    ol_model_config base = base_model(false);
    uint8_t *moved = malloc(weights.len + 1);
    ol_buf odd = {.data = moved + 1, .len = weights.len};
    parsed p;

    (void)state;
    memcpy(moved + 1, weights.data, weights.len);
    p = parse(&odd, "{" QV "}", &base);
    expect_ok(p.code, &p.err);
    for (int i = 0; i < p.file.n_modules; i++) {
        assert_int_equal((uintptr_t)p.file.modules[i].a.data % 4, 0);
        assert_true(((const float *)p.file.modules[i].b.data)[0] == 1.0f);
    }
    ol_arena_destroy(p.arena);
    free(moved);
    ol_buf_free(&weights);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),       cmocka_unit_test(test_scales),
        cmocka_unit_test(test_targets),     cmocka_unit_test(test_fields),
        cmocka_unit_test(test_bad_tensors), cmocka_unit_test(test_bad_shapes),
        cmocka_unit_test(test_not_finite),  cmocka_unit_test(test_other_bytes),
        cmocka_unit_test(test_unaligned),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
