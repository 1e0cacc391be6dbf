/* test_formats_gguf_lora.c: llama.cpp's adapters, the order of rows, adapters on disk. */
#include "test_formats_adapter.h"

/* -- the order of q's and k's rows -------------------------------------------------- */

/* Row r of B begins with 1 + r * rank in the file; where does it stand? */
static void expect_rows(const ol_lora_module *m, const int *from)
{
    const float *b = m->b.data;

    for (int row = 0; row < m->b.shape[0]; row++)
        if (b[row * m->rank] != (float)(1 + from[row] * m->rank))
            fail_msg("row %d begins with %g", row, (double)b[row * m->rank]);
}

static ol_buf gguf_adapter(const char *arch, const char *type, float alpha, const char *extra)
{
    gg_builder b = {0};

    gg_str(&b, "general.architecture", arch);
    gg_str(&b, "general.type", type);
    gg_str(&b, "adapter.type", "lora");
    gg_str(&b, "general.base_model.0.name", "Tiny");
    if (alpha != 0)
        gg_f32(&b, "adapter.lora.alpha", alpha);
    gg_tensor(&b, "blk.1.attn_q.weight.lora_a", 8, 2);
    gg_tensor(&b, "blk.1.attn_q.weight.lora_b", 2, 8);
    gg_tensor(&b, "blk.1.ffn_down.weight.lora_a", 12, 2);
    gg_tensor(&b, "blk.1.ffn_down.weight.lora_b", 2, 8);
    if (extra)
        gg_tensor(&b, extra, 8, 2);
    return gg_end(&b);
}

static void test_row_order(void **state)
{
    static const int same[] = {0, 1, 2, 3, 4, 5, 6, 7};
    static const int woven[] = {0, 2, 1, 3, 4, 6, 5, 7}; /* row 2i + j is row j * 2 + i */
    ol_model_config split = base_model(false), interleaved = base_model(true);
    ol_buf peft = q_and_v(2, "F32"), gguf = gguf_adapter("llama", "adapter", 8, NULL);
    const struct {
        const ol_buf *file;
        const char *config;
        const ol_model_config *base;
        const int *order;
    } cases[] = {{&peft, "{" QV "}", &split, same}, {&peft, "{" QV "}", &interleaved, woven},
                 {&gguf, "", &interleaved, same},   {&gguf, "", &split, woven},
                 {&peft, "{" QV "}", NULL, same},   {&gguf, "", NULL, same}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        parsed p = parse(cases[i].file, cases[i].config, cases[i].base);

        expect_ok(p.code, &p.err);
        expect_rows(&p.file.modules[0], cases[i].order);
        expect_rows(&p.file.modules[1], same); /* v, down: never */
        ol_arena_destroy(p.arena);
    }
    ol_buf_free(&peft);
    ol_buf_free(&gguf);
}

/* A head of 8 rows tells both directions apart, which one of 4 does not. */
static void test_row_order_of_wide_heads(void **state)
{
    static const int woven[] = {0, 4, 1, 5, 2, 6, 3, 7}, unwoven[] = {0, 2, 4, 6, 1, 3, 5, 7};
    ol_model_config base = base_model(true);
    ol_buf peft = q_and_v(2, "F32"), gguf = gguf_adapter("llama", "adapter", 8, NULL);
    parsed p;

    (void)state;
    base.head_dim = 8;
    base.n_heads = 1;
    base.rope.dims = 8;
    base.n_kv_heads = 1;
    base.rope.interleaved = false;
    p = parse(&gguf, "", &base);
    expect_ok(p.code, &p.err);
    expect_rows(&p.file.modules[0], unwoven);
    ol_arena_destroy(p.arena);
    ol_buf_free(&peft);
    {
        st_builder b = {0};

        st_add(&b, L0 "self_attn.k_proj.lora_A.weight", "F32", 2, 8);
        st_add(&b, L0 "self_attn.k_proj.lora_B.weight", "F32", 8, 2);
        peft = st_end(&b);
    }
    base.rope.interleaved = true;
    base.n_layers = 1;
    p = parse(&peft, "{\"peft_type\":\"LORA\",\"r\":2,\"target_modules\":[\"k_proj\"]}", &base);
    expect_ok(p.code, &p.err);
    expect_rows(&p.file.modules[0], woven);
    ol_arena_destroy(p.arena);
    ol_buf_free(&peft);
    ol_buf_free(&gguf);
}

static void expect_gguf_error(ol_buf file, ol_code code, const char *word)
{
    ol_model_config base = base_model(true);
    parsed p = parse(&file, "", &base);

    expect_error(p.code, code, &p.err, word);
    ol_arena_destroy(p.arena);
    ol_buf_free(&file);
}

static void test_gguf(void **state)
{
    ol_model_config base = base_model(true);
    ol_buf file = gguf_adapter("llama", "adapter", 8, NULL);
    parsed p = parse(&file, "", &base);

    (void)state;
    expect_ok(p.code, &p.err);
    assert_int_equal(p.file.format, OL_ADAPTER_GGUF);
    assert_int_equal(p.file.n_modules, 2);
    assert_int_equal(p.file.modules[1].module, OL_MOD_DOWN);
    assert_int_equal(p.file.modules[1].a.shape[1], 12);
    assert_true(p.file.modules[0].scale == 4.0f);
    assert_string_equal(p.file.base_model, "Tiny");
    ol_arena_destroy(p.arena);
    ol_buf_free(&file);
    file = gguf_adapter("llama", "adapter", 0, NULL); /* llama.cpp: no alpha, scale 1 */
    p = parse(&file, "", &base);
    expect_ok(p.code, &p.err);
    assert_true(p.file.modules[0].scale == 1.0f);
    ol_arena_destroy(p.arena);
    ol_buf_free(&file);
    expect_gguf_error(gguf_adapter("llama", "model", 8, NULL), OL_INVALID, "not an adapter");
    expect_gguf_error(gguf_adapter("qwen2", "adapter", 8, NULL), OL_MISMATCH, "qwen2");
    expect_gguf_error(gguf_adapter("phi3", "adapter", 8, NULL), OL_UNSUPPORTED, "phi3");
    expect_gguf_error(gguf_adapter("llama", "adapter", 8, "blk.0.attn_norm.weight"), OL_UNSUPPORTED,
                      "attn_norm");
    expect_gguf_error(gguf_adapter("llama", "adapter", 8, "token_embd.weight.lora_a"),
                      OL_UNSUPPORTED, "token_embd");
    expect_gguf_error(gguf_adapter("llama", "adapter", 8, "blk.0.attn_k.weight.lora_a"), OL_CORRUPT,
                      "lacks its B");
    expect_gguf_error(gguf_adapter("llama", "adapter", 8, "blk.2.attn_k.weight.lora_a"),
                      OL_MISMATCH, "2 layers");
}

/* Quantised matrices become F32. */
static void test_gguf_quantised(void **state)
{
    gg_builder b = {0};
    uint8_t rows[32 * 34];
    float one[32];
    ol_adapter_bytes bytes;
    ol_buf file;
    parsed p;

    (void)state;
    for (size_t i = 0; i < sizeof(rows); i++)
        rows[i] = (uint8_t)(i % 34 == 0 ? 0x00 : i % 34 == 1 ? 0x3C : i);
    gg_str(&b, "general.architecture", "qwen3");
    gg_str(&b, "general.type", "adapter");
    gg_str(&b, "adapter.type", "lora");
    gg_tensor_bytes(&b, "blk.0.attn_v.weight.lora_a", 8, 32, 32, rows, sizeof(rows));
    gg_tensor_bytes(&b, "blk.0.attn_v.weight.lora_b", 8, 32, 2, rows, 2 * 34);
    file = gg_end(&b);
    p = parse(&file, "", NULL);
    expect_ok(p.code, &p.err);
    assert_int_equal(p.file.modules[0].rank, 32);
    assert_int_equal(p.file.modules[0].a.dtype, OL_F32);
    assert_int_equal(p.file.modules[0].a.bytes, 32 * 32 * 4);
    ol_dequantize(OL_Q8_0, rows + 34, one, 32);
    assert_memory_equal((const float *)p.file.modules[0].a.data + 32, one, sizeof(one));
    ol_arena_destroy(p.arena);
    /* 32 * 32 and 2 * 32 numbers; nothing is read of what would take more than may be */
    bytes = (ol_adapter_bytes){file.data, file.len, "", 0};
    p.arena = ol_arena_create();
    p.code = ol_adapter_file_parse_within(&bytes, NULL, 34 * 32 * 4, p.arena, &p.file, &p.err);
    expect_ok(p.code, &p.err);
    p.code = ol_adapter_file_parse_within(&bytes, NULL, 34 * 32 * 4 - 1, p.arena, &p.file, &p.err);
    expect_error(p.code, OL_LIMIT, &p.err, "take 4352 bytes");
    ol_arena_destroy(p.arena);
    ol_buf_free(&file);
}

static void test_on_disk(void **state)
{
    char folder[64], path[128];
    ol_buf weights = q_and_v(2, "F32"), gguf = gguf_adapter("llama", "adapter", 8, NULL);
    ol_arena *arena = ol_arena_create();
    ol_adapter_disk disk;
    ol_adapter_file file;
    ol_error err;

    (void)state;
    make_folder(folder);
    write_text(folder, "adapter_model.bin", "PK\3\4");
    expect_error(ol_adapter_read_path(folder, NULL, arena, &disk, &file, &err), OL_UNSUPPORTED,
                 &err, "safetensors");
    write_file(folder, "adapter_model.safetensors", weights.data, weights.len);
    expect_error(ol_adapter_read_path(folder, NULL, arena, &disk, &file, &err), OL_NOT_FOUND, &err,
                 "adapter_config.json");
    write_text(folder, "adapter_config.json", "{" QV "}");
    expect_ok(ol_adapter_read_path(folder, NULL, arena, &disk, &file, &err), &err);
    assert_int_equal(file.n_modules, 4);
    ol_adapter_disk_close(&disk);
    snprintf(path, sizeof(path), "%s/a.gguf", folder);
    write_file(folder, "a.gguf", gguf.data, gguf.len);
    expect_ok(ol_adapter_read_path(path, NULL, arena, &disk, &file, &err), &err);
    assert_int_equal(file.n_modules, 2);
    ol_adapter_disk_close(&disk);
    snprintf(path, sizeof(path), "%s/adapter_config.json", folder);
    expect_error(ol_adapter_read_path(path, NULL, arena, &disk, &file, &err), OL_INVALID, &err,
                 "neither");
    ol_arena_destroy(arena);
    remove_folder(folder);
    ol_buf_free(&weights);
    ol_buf_free(&gguf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_row_order), cmocka_unit_test(test_row_order_of_wide_heads),
        cmocka_unit_test(test_gguf),      cmocka_unit_test(test_gguf_quantised),
        cmocka_unit_test(test_on_disk),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
