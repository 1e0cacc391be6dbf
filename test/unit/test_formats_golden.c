/*
 * test_formats_golden.c: files made by transformers, peft and gguf (test/data/make)
 * against what we read out of them.
 */
#include "test_formats_util.h"

#include "engine/formats/adapter_file.h"
#include "engine/formats/weights.h"

#include <jansson.h>
#include <math.h>

static const char *const models[] = {"llama",      "llama3",  "llama_gqa", "llama_linear_rope",
                                     "llama_wide", "mistral", "qwen2",     "qwen2_window",
                                     "qwen3"};

static void need(const char *rest, char path[512])
{
    if (!golden(path, rest)) {
        print_message("skipped: no %s\n", path);
        skip();
    }
}

static ol_model_source *open_source(const char *rest)
{
    char path[512];
    ol_model_source *src;
    ol_error err;

    need(rest, path);
    expect_ok(ol_model_source_open(path, &src, &err), &err);
    expect_ok(ol_model_source_check(src, NULL, NULL, &err), &err);
    return src;
}

/* -- adapters: ranks and scales as peft has them ------------------------------------- */

static void compare_modules(const json_t *modules, const ol_adapter_file *file, const char *where)
{
    assert_int_equal(json_object_size(modules), file->n_modules);
    for (int i = 0; i < file->n_modules; i++) {
        const ol_lora_module *m = &file->modules[i];
        const json_t *want;
        char key[128];

        snprintf(key, sizeof(key), "model.layers.%d.%s.%s", m->layer,
                 ol_module_in_attention(m->module) ? "self_attn" : "mlp",
                 ol_module_name(m->module));
        want = json_object_get(modules, key);
        if (!want)
            fail_msg("%s: %s is not adapted", where, key);
        assert_int_equal(m->rank, json_integer_value(json_array_get(want, 0)));
        assert_true(fabs((double)m->scale - json_number_value(json_array_get(want, 1))) < 1e-6);
    }
}

static void check_adapters(const char *model)
{
    char rest[64], path[512];
    ol_model_source *src = open_source(model);
    json_t *root, *adapter;
    const char *name;

    snprintf(rest, sizeof(rest), "%s/golden.json", model);
    need(rest, path);
    root = json_load_file(path, 0, NULL);
    assert_non_null(root);
    assert_true(json_object_size(json_object_get(root, "adapters")) > 0);
    json_object_foreach(json_object_get(root, "adapters"), name, adapter)
    {
        ol_arena *arena = ol_arena_create();
        ol_adapter_disk disk;
        ol_adapter_file file;
        ol_error err;

        snprintf(rest, sizeof(rest), "%s/%s", model,
                 json_string_value(json_object_get(adapter, "path")));
        need(rest, path);
        expect_ok(
            ol_adapter_read_path(path, ol_model_source_config(src), arena, &disk, &file, &err),
            &err);
        compare_modules(json_object_get(adapter, "modules"), &file, path);
        ol_adapter_disk_close(&disk);
        ol_arena_destroy(arena);
    }
    json_decref(root);
    ol_model_source_close(src);
}

static void test_adapters(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++)
        check_adapters(models[i]);
}

/* -- the same model in both formats ---------------------------------------------------- */

static void same_description(const ol_model_config *a, const ol_model_config *b)
{
    float fa[OL_MAX_HEAD_DIM / 2], fb[OL_MAX_HEAD_DIM / 2];

    assert_int_equal(a->vocab, b->vocab);
    assert_int_equal(a->hidden, b->hidden);
    assert_int_equal(a->n_layers, b->n_layers);
    assert_int_equal(a->n_heads, b->n_heads);
    assert_int_equal(a->n_kv_heads, b->n_kv_heads);
    assert_int_equal(a->head_dim, b->head_dim);
    assert_int_equal(a->ffn, b->ffn);
    assert_int_equal(a->qkv_bias, b->qkv_bias);
    assert_int_equal(a->o_bias, b->o_bias);
    assert_int_equal(a->qk_norm, b->qk_norm);
    assert_int_equal(a->tie_embeddings, b->tie_embeddings);
    assert_int_equal(a->rope.dims, b->rope.dims);
    assert_true(a->norm_eps == b->norm_eps);
    assert_true(ol_rope_frequencies(a, fa) == ol_rope_frequencies(b, fb));
    for (int i = 0; i < a->rope.dims / 2; i++)
        if (fabsf(fa[i] - fb[i]) > 2e-6f * fa[i])
            fail_msg("frequency %d: %.9g and %.9g", i, (double)fa[i], (double)fb[i]);
}

/* Row `row` of an interleaved q or k, where it is in the rotate-half order. */
static int64_t split_row(const ol_model_config *c, int64_t row)
{
    int64_t i = row % c->head_dim;

    return row - i + (i % 2) * (c->head_dim / 2) + i / 2;
}

static void same_tensors(ol_model_source *folder, ol_model_source *gguf, int role, int layer)
{
    const ol_model_config *c = ol_model_source_config(gguf);
    int module = role >= OL_ROLE_LINEAR ? (role - OL_ROLE_LINEAR) % OL_MODULES : -1;
    bool reorder = c->rope.interleaved && (module == OL_MOD_Q || module == OL_MOD_K);
    ol_tensor a, b;
    ol_error err;
    size_t row_bytes;

    expect_ok(ol_model_source_tensor(folder, role, layer, &a, &err), &err);
    expect_ok(ol_model_source_tensor(gguf, role, layer, &b, &err), &err);
    assert_int_equal(a.bytes, b.bytes);
    row_bytes = a.bytes / (size_t)a.shape[0];
    for (int64_t row = 0; row < b.shape[0]; row++) {
        int64_t from = reorder ? split_row(c, row) : row;

        if (memcmp((const char *)a.data + (size_t)from * row_bytes,
                   (const char *)b.data + (size_t)row * row_bytes, row_bytes) != 0)
            fail_msg("%s: row %lld differs", b.name, (long long)row);
    }
}

static void test_gguf_equals_folder(void **state)
{
    static const struct {
        const char *folder, *gguf;
    } pairs[] = {{"llama", "gguf/llama-f32.gguf"},
                 {"llama3", "gguf/llama3-f32.gguf"},
                 {"llama_linear_rope", "gguf/llama_linear_rope-f32.gguf"},
                 {"qwen2", "gguf/qwen2-f32.gguf"},
                 {"qwen3", "gguf/qwen3-f32.gguf"}};

    (void)state;
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        ol_model_source *folder = open_source(pairs[i].folder);
        ol_model_source *gguf = open_source(pairs[i].gguf);
        const ol_model_config *c = ol_model_source_config(folder);

        same_description(c, ol_model_source_config(gguf));
        for (int role = 0; role < OL_ROLE_COUNT; role++)
            for (int layer = 0; layer < (ol_role_per_layer(role) ? c->n_layers : 1); layer++)
                if (ol_role_present(c, role))
                    same_tensors(folder, gguf, role, layer);
        ol_model_source_close(folder);
        ol_model_source_close(gguf);
    }
}

/* -- the same adapter in both formats, on both kinds of base ---------------------------- */

static void same_adapter(const char *one, const char *two, const char *base)
{
    ol_model_source *src = open_source(base);
    ol_arena *arena = ol_arena_create();
    ol_adapter_disk disk[2];
    ol_adapter_file file[2];
    char path[512];
    ol_error err;

    need(one, path);
    expect_ok(
        ol_adapter_read_path(path, ol_model_source_config(src), arena, &disk[0], &file[0], &err),
        &err);
    need(two, path);
    expect_ok(
        ol_adapter_read_path(path, ol_model_source_config(src), arena, &disk[1], &file[1], &err),
        &err);
    assert_int_equal(file[0].n_modules, file[1].n_modules);
    for (int i = 0; i < file[0].n_modules; i++) {
        const ol_lora_module *a = &file[0].modules[i], *b = &file[1].modules[i];

        assert_int_equal(a->layer, b->layer);
        assert_int_equal(a->module, b->module);
        assert_int_equal(a->rank, b->rank);
        assert_true(a->scale == b->scale);
        assert_int_equal(a->b.bytes, b->b.bytes);
        assert_memory_equal(a->a.data, b->a.data, a->a.bytes);
        assert_memory_equal(a->b.data, b->b.data, a->b.bytes);
    }
    ol_adapter_disk_close(&disk[0]);
    ol_adapter_disk_close(&disk[1]);
    ol_arena_destroy(arena);
    ol_model_source_close(src);
}

static void test_gguf_adapters(void **state)
{
    (void)state;
    same_adapter("llama/adapters/a", "gguf/adapter-a.gguf", "llama");
    same_adapter("llama/adapters/a", "gguf/adapter-a.gguf", "gguf/llama-f32.gguf");
    same_adapter("qwen2/adapters/a", "gguf/qwen2-adapter-a.gguf", "qwen2");
    same_adapter("qwen2/adapters/a", "gguf/qwen2-adapter-a.gguf", "gguf/qwen2-f32.gguf");
}

/* -- number formats ------------------------------------------------------------------------ */

static void test_quants(void **state)
{
    static const struct {
        const char *name;
        ol_dtype dtype;
    } types[] = {{"q8_0", OL_Q8_0}, {"q4_0", OL_Q4_0}, {"q4_k", OL_Q4_K},
                 {"q6_k", OL_Q6_K}, {"f16", OL_F16},   {"bf16", OL_BF16}};

    (void)state;
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        char rest[64], path[512];
        ol_map packed, want;
        ol_error err;
        float *got;
        size_t n;

        snprintf(rest, sizeof(rest), "quants/%s.bin", types[i].name);
        need(rest, path);
        expect_ok(ol_map_open(path, &packed, &err), &err);
        snprintf(rest, sizeof(rest), "quants/%s.f32", types[i].name);
        need(rest, path);
        expect_ok(ol_map_open(path, &want, &err), &err);
        n = packed.len / ol_dtype_block_bytes(types[i].dtype) *
            (size_t)ol_dtype_block(types[i].dtype);
        assert_int_equal(n * 4, want.len);
        got = malloc(n * sizeof(float));
        ol_dequantize(types[i].dtype, packed.data, got, n);
        for (size_t k = 0; k < n; k++) {
            const float w = ((const float *)want.data)[k];

            if (isnan(w)   ? !isnan(got[k])
                : isinf(w) ? got[k] != w
                           : fabsf(got[k] - w) > 1e-6f * fabsf(w) + 1e-30f)
                fail_msg("%s: value %zu is %.9g, not %.9g", types[i].name, k, (double)got[k],
                         (double)w);
        }
        free(got);
        ol_map_close(&packed);
        ol_map_close(&want);
    }
}

/* -- hostile files: an error each, with the word that says what is wrong ----------------- */

static ol_code open_hostile_model(const char *path, ol_error *err)
{
    ol_model_source *src;
    ol_code code;

    OL_TRY(ol_model_source_open(path, &src, err));
    code = ol_model_source_check(src, NULL, NULL, err);
    ol_model_source_close(src);
    return code;
}

static ol_code open_hostile_adapter(const char *path, const char *base, ol_error *err)
{
    char rest[256], base_path[512];
    ol_model_source *src;
    ol_arena *arena = ol_arena_create();
    ol_adapter_disk disk;
    ol_adapter_file file;
    ol_code code;

    snprintf(rest, sizeof(rest), "hostile/%s", base ? base : "base");
    need(rest, base_path);
    expect_ok(ol_model_source_open(base_path, &src, err), err);
    code = ol_adapter_read_path(path, ol_model_source_config(src), arena, &disk, &file, err);
    if (code == OL_OK)
        ol_adapter_disk_close(&disk);
    ol_model_source_close(src);
    ol_arena_destroy(arena);
    return code;
}

static bool says(const ol_error *err, const char *word)
{
    return strcasestr(err->message, word) || strcasestr(err->detail, word) ||
           strcasestr(err->hint, word);
}

static int check_hostile(const json_t *entry)
{
    const char *name = json_string_value(json_object_get(entry, "path"));
    const char *kind = json_string_value(json_object_get(entry, "kind"));
    const char *word = json_string_value(json_object_get(entry, "expect"));
    const char *base = json_string_value(json_object_get(entry, "base"));
    char rest[256], path[512];
    ol_error err = {0};
    ol_code code;

    snprintf(rest, sizeof(rest), "hostile/%s", name);
    golden(path, rest);
    code = strcmp(kind, "model") == 0 ? open_hostile_model(path, &err)
                                      : open_hostile_adapter(path, base, &err);
    if (word ? code != OL_OK && says(&err, word) : code == OL_OK)
        return 0;
    print_error("%s (%s), expected %s: %s, %s | %s | %s\n", name,
                json_string_value(json_object_get(entry, "wrong")), word ? word : "no error",
                ol_code_name(code), err.message, err.detail, err.hint);
    return 1;
}

static void test_hostile(void **state)
{
    char path[512];
    json_t *list, *entry;
    size_t i;
    int wrong = 0;

    (void)state;
    need("hostile/manifest.json", path);
    list = json_load_file(path, 0, NULL);
    assert_true(json_array_size(list) > 0);
    json_array_foreach(list, i, entry)
    {
        wrong += check_hostile(entry);
    }
    json_decref(list);
    assert_int_equal(wrong, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adapters),      cmocka_unit_test(test_gguf_equals_folder),
        cmocka_unit_test(test_gguf_adapters), cmocka_unit_test(test_quants),
        cmocka_unit_test(test_hostile),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
