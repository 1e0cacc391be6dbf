/* test_formats_config.c: config.json and generation_config.json; rotary frequencies. */
#include "test_formats_util.h"

#include "engine/formats/hfconfig.h"

#include <math.h>

#define SIZES                                                                                      \
    "\"vocab_size\":100,\"hidden_size\":64,\"num_hidden_layers\":4,\"num_attention_heads\":4,"     \
    "\"intermediate_size\":96,\"max_position_embeddings\":2048,\"rms_norm_eps\":1e-5"

static ol_code parse(const char *family, const char *more, ol_model_config *c, ol_error *err)
{
    char json[4096];

    snprintf(json, sizeof(json), "{\"model_type\":\"%s\"," SIZES "%s%s}", family, *more ? "," : "",
             more);
    return ol_hfconfig_parse(json, strlen(json), "config.json", c, err);
}

static void test_families(void **state)
{
    ol_model_config c;
    ol_error err;

    (void)state;
    expect_ok(parse("llama", "", &c, &err), &err);
    assert_int_equal(c.family, OL_FAMILY_LLAMA);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.n_kv_heads, 4);
    assert_false(c.qkv_bias || c.o_bias || c.mlp_bias || c.qk_norm || c.tie_embeddings);
    assert_false(c.rope.interleaved);
    assert_int_equal(c.bos, -1);
    assert_int_equal(c.n_eos, 0);
    expect_ok(parse("llama",
                    "\"head_dim\":32,\"num_key_value_heads\":2,\"attention_bias\":true,"
                    "\"mlp_bias\":true,\"tie_word_embeddings\":true,\"sliding_window\":7",
                    &c, &err),
              &err);
    assert_int_equal(c.head_dim, 32);
    assert_int_equal(c.n_kv_heads, 2);
    assert_true(c.qkv_bias && c.o_bias && c.mlp_bias && c.tie_embeddings);
    assert_int_equal(c.window[0], 0);
    expect_ok(parse("qwen2", "\"num_key_value_heads\":null,\"attention_bias\":false", &c, &err),
              &err);
    assert_true(c.qkv_bias && !c.o_bias);
    expect_ok(parse("qwen3", "\"num_key_value_heads\":2", &c, &err), &err);
    assert_true(c.qk_norm && !c.qkv_bias);
    assert_int_equal(c.head_dim, 128);
    expect_ok(parse("qwen3", "\"num_key_value_heads\":2,\"head_dim\":16,\"attention_bias\":true",
                    &c, &err),
              &err);
    assert_true(c.qkv_bias && c.o_bias);
    expect_ok(parse("mistral",
                    "\"num_key_value_heads\":2,\"sliding_window\":null,"
                    "\"architectures\":[\"MistralForCausalLM\"]",
                    &c, &err),
              &err);
    assert_int_equal(c.family, OL_FAMILY_MISTRAL);
}

static void expect_windows(const char *family, const char *more, int a, int b, int c, int d)
{
    ol_model_config config;
    ol_error err;
    char text[512];

    snprintf(text, sizeof(text), "\"num_key_value_heads\":2,\"head_dim\":16%s%s", *more ? "," : "",
             more);
    expect_ok(parse(family, text, &config, &err), &err);
    assert_int_equal(config.window[0], a);
    assert_int_equal(config.window[1], b);
    assert_int_equal(config.window[2], c);
    assert_int_equal(config.window[3], d);
}

static void test_windows(void **state)
{
    ol_model_config c;
    ol_error err;

    (void)state;
    expect_windows("mistral", "", 4096, 4096, 4096, 4096); /* the class's default */
    expect_windows("mistral", "\"sliding_window\":null", 0, 0, 0, 0);
    expect_windows("mistral", "\"sliding_window\":8", 8, 8, 8, 8);
    expect_windows("qwen2", "\"sliding_window\":8,\"max_window_layers\":2", 0, 0, 0, 0);
    expect_windows("qwen2",
                   "\"sliding_window\":8,\"max_window_layers\":2,"
                   "\"use_sliding_window\":true",
                   0, 0, 8, 8);
    expect_windows("qwen3",
                   "\"sliding_window\":8,\"use_sliding_window\":true,\"layer_types\":["
                   "\"full_attention\",\"sliding_attention\",\"full_attention\","
                   "\"sliding_attention\"]",
                   0, 8, 0, 8);
    expect_windows("qwen2", "\"use_sliding_window\":true", 0, 0, 0, 0); /* from layer 28 on */
    expect_error(parse("qwen2",
                       "\"num_key_value_heads\":2,\"sliding_window\":8,"
                       "\"use_sliding_window\":true,\"layer_types\":[\"full_attention\"]",
                       &c, &err),
                 OL_UNSUPPORTED, &err, "layer_types");
    expect_error(parse("qwen2",
                       "\"num_key_value_heads\":2,\"sliding_window\":8,"
                       "\"use_sliding_window\":true,\"layer_types\":[\"a\",\"b\",\"c\",1]",
                       &c, &err),
                 OL_UNSUPPORTED, &err, "layer_types");
}

static void test_refusals(void **state)
{
    static const struct {
        const char *family, *more, *word;
        ol_code code;
    } cases[] = {
        {"gpt2", "", "gpt2", OL_UNSUPPORTED},
        {"llama", "\"architectures\":[\"LlamaForSequenceClassification\"]", "SequenceClass",
         OL_UNSUPPORTED},
        {"llama", "\"hidden_act\":\"gelu\"", "gelu", OL_UNSUPPORTED},
        {"llama", "\"quantization_config\":{\"bits\":4}", "quantization_config", OL_UNSUPPORTED},
        {"llama", "\"attn_logit_softcapping\":50.0", "attn_logit_softcapping", OL_UNSUPPORTED},
        {"llama", "\"partial_rotary_factor\":0.5", "partial_rotary_factor", OL_UNSUPPORTED},
        {"llama", "\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":2.0}", "dynamic",
         OL_UNSUPPORTED},
        {"llama", "\"rope_scaling\":{\"type\":\"longrope\"}", "longrope", OL_UNSUPPORTED},
        {"llama", "\"rope_scaling\":[1]", "rope_scaling", OL_UNSUPPORTED},
        {"llama", "\"rope_scaling\":{\"type\":\"linear\"}", "factor", OL_CORRUPT},
        {"llama", "\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8.0}", "llama3", OL_CORRUPT},
        {"llama", "\"rope_theta\":0", "theta", OL_CORRUPT},
        {"llama", "\"rope_theta\":\"10000\"", "rope_theta", OL_CORRUPT},
        {"llama", "\"head_dim\":15", "odd", OL_CORRUPT},
        {"llama", "\"head_dim\":100000", "head_dim", OL_LIMIT},
        {"llama", "\"num_key_value_heads\":3", "evenly", OL_CORRUPT},
        {"llama", "\"num_key_value_heads\":0", "num_key_value_heads", OL_LIMIT},
        {"llama", "\"eos_token_id\":100", "eos_token_id", OL_CORRUPT},
        {"llama", "\"eos_token_id\":[2,\"3\"]", "eos_token_id", OL_CORRUPT},
        {"llama", "\"bos_token_id\":100", "bos_token_id", OL_LIMIT},
        {"llama", "\"tie_word_embeddings\":\"no\"", "tie_word_embeddings", OL_CORRUPT},
        {"llama", "\"hidden_size\":64", "duplicate", OL_CORRUPT},
    };
    ol_model_config c;
    ol_error err;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        expect_error(parse(cases[i].family, cases[i].more, &c, &err), cases[i].code, &err,
                     cases[i].word);
    expect_error(parse("mistral", "", &c, &err), OL_UNSUPPORTED, &err,
                 "key-value"); /* class default: 8 */
    expect_error(ol_hfconfig_parse("{\"model_type\":\"llama\"}", 22, "config.json", &c, &err),
                 OL_CORRUPT, &err, "vocab_size");
    expect_error(ol_hfconfig_parse("[]", 2, "config.json", &c, &err), OL_CORRUPT, &err, "object");
    expect_error(ol_hfconfig_parse(NULL, 0, "config.json", &c, &err), OL_CORRUPT, &err, "JSON");
}

static void test_tokens_and_generation(void **state)
{
    static const char generation[] = "{\"eos_token_id\":[7,9,7],\"temperature\":0.6,\"top_k\":20,"
                                     "\"do_sample\":true,\"bos_token_id\":3}";
    ol_model_config c;
    ol_error err;

    (void)state;
    expect_ok(parse("llama", "\"eos_token_id\":[2,5],\"bos_token_id\":1", &c, &err), &err);
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.bos, 1);
    expect_ok(ol_hfconfig_generation("{}", 2, "g", &c, &err), &err);
    assert_int_equal(c.n_eos, 2);
    expect_ok(ol_hfconfig_generation(generation, strlen(generation), "g", &c, &err), &err);
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos[0], 7);
    assert_int_equal(c.eos[1], 9);
    assert_int_equal(c.bos, 3);
    assert_true(c.generation.has_temperature && !c.generation.has_top_p);
    assert_true(fabs(c.generation.temperature - 0.6) < 1e-12);
    assert_int_equal(c.generation.top_k, 20);
    expect_error(ol_hfconfig_generation("{\"eos_token_id\":-2}", 19, "g", &c, &err), OL_CORRUPT,
                 &err, "eos_token_id");
}

/* inv_freq as transformers 5.23 computes it, float32; see each configuration. */
static void expect_frequencies(const char *more, const float want[8], float factor)
{
    ol_model_config c;
    ol_error err;
    float got[8];

    expect_ok(parse("llama", more, &c, &err), &err);
    assert_true(fabsf(ol_rope_frequencies(&c, got) - factor) < 1e-6f);
    for (int i = 0; i < 8; i++)
        if (fabsf(got[i] - want[i]) > 2e-7f * want[i])
            fail_msg("%s: %d: %.9g, not %.9g", more, i, (double)got[i], (double)want[i]);
}

static void test_rope(void **state)
{
    static const float plain[] = {1.f,
                                  0.193922758f,
                                  0.0376060307f,
                                  0.00729266508f,
                                  0.00141421345f,
                                  0.000274248188f,
                                  5.31829573e-05f,
                                  1.03133852e-05f};
    static const float linear[] = {0.25f,           0.079056941f,   0.0250000004f,
                                   0.00790569466f,  0.00249999994f, 0.000790569466f,
                                   0.000250000012f, 7.90569466e-05f};
    static const float llama3[] = {1.f,
                                   0.193922758f,
                                   0.0376060307f,
                                   0.00729266508f,
                                   0.000524846022f,
                                   3.42810235e-05f,
                                   6.64786967e-06f,
                                   1.28917316e-06f};
    static const float yarn[] = {1.f,
                                 0.177827939f,
                                 0.0316227786f,
                                 0.00421755994f,
                                 0.000500000024f,
                                 4.44569851e-05f,
                                 7.90569356e-06f,
                                 1.40585337e-06f};

    (void)state;
    expect_frequencies("\"rope_theta\":500000.0", plain, 1);
    expect_frequencies("\"rope_parameters\":{\"rope_theta\":500000,\"rope_type\":\"default\"}",
                       plain, 1);
    expect_frequencies("\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}", linear, 1);
    expect_frequencies("\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\","
                       "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                       "\"original_max_position_embeddings\":8192}",
                       llama3, 1);
    expect_frequencies("\"rope_theta\":1000000.0,\"rope_scaling\":{\"rope_type\":\"yarn\","
                       "\"factor\":4.0,\"original_max_position_embeddings\":32768}",
                       yarn, 1.138629436f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families), cmocka_unit_test(test_windows),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_tokens_and_generation),
        cmocka_unit_test(test_rope),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
