/* test_formats_gguf.c: GGUF files, good and hostile, and the description they give. */
#include "test_formats_util.h"

#include "engine/formats/gguf_config.h"

static ol_code open_bytes(const ol_buf *file, ol_error *err)
{
    ol_gguf *g = NULL;
    ol_code code = ol_gguf_bytes(file->data, file->len, "x.gguf", &g, err);

    if (code == OL_OK)
        ol_gguf_close(g);
    return code;
}

static void put_array(gg_builder *b, const char *key, uint32_t of, uint64_t count)
{
    gg_key(b, key, 9);
    ol_buf_put_u32(&b->meta, of);
    ol_buf_put_u64(&b->meta, count);
}

static ol_buf rich_file(void)
{
    gg_builder b = {0};

    gg_str(&b, "general.architecture", "llama");
    gg_u32(&b, "n", 7);
    gg_f32(&b, "f", 0.5f);
    gg_key(&b, "flag", 7);
    ol_buf_put_u8(&b.meta, 1);
    gg_key(&b, "i16", 3);
    ol_buf_put_u16(&b.meta, (uint16_t)-5);
    gg_key(&b, "u64", 10);
    ol_buf_put_u64(&b.meta, UINT64_MAX);
    gg_key(&b, "f64", 12);
    ol_buf_put_f64(&b.meta, 0.25);
    put_array(&b, "words", 8, 2);
    gg_put_str(&b.meta, "ab");
    gg_put_str(&b.meta, "");
    put_array(&b, "bytes", 0, 3);
    ol_buf_put(&b.meta, "\1\2\377", 3);
    put_array(&b, "scores", 6, 2);
    ol_buf_put_f32(&b.meta, 1.5f);
    ol_buf_put_f32(&b.meta, -1.0f);
    put_array(&b, "nested", 9, 1);
    ol_buf_put_u32(&b.meta, 4);
    ol_buf_put_u64(&b.meta, 1);
    ol_buf_put_u32(&b.meta, 9);
    gg_tensor(&b, "t.one", 4, 3);
    gg_tensor(&b, "t.two", 5, 0);
    gg_tensor_bytes(&b, "t.odd", 26, 2, 0, "12345678", 8);
    gg_tensor_bytes(&b, "t.new", 99, 2, 0, "12345678", 8);
    return gg_end(&b);
}

static void test_metadata(void **state)
{
    ol_buf file = rich_file();
    ol_gguf *g;
    ol_error err;
    uint32_t u;
    int64_t i;
    float f;
    bool flag;
    ol_gguf_str s;
    char text[8];

    (void)state;
    expect_ok(ol_gguf_bytes(file.data, file.len, "x", &g, &err), &err);
    assert_int_equal(ol_gguf_version(g), 3);
    expect_ok(ol_gguf_u32(g, "n", 0, &u, &err), &err);
    assert_int_equal(u, 7);
    expect_ok(ol_gguf_u32(g, "none", 3, &u, &err), &err);
    assert_int_equal(u, 3);
    expect_ok(ol_gguf_i64(g, "i16", 0, &i, &err), &err);
    assert_int_equal(i, -5);
    expect_error(ol_gguf_u32(g, "i16", 0, &u, &err), OL_CORRUPT, &err, "i16");
    expect_error(ol_gguf_i64(g, "u64", 0, &i, &err), OL_CORRUPT, &err, "u64");
    expect_error(ol_gguf_u32(g, "f", 0, &u, &err), OL_CORRUPT, &err, "integer");
    expect_ok(ol_gguf_f32(g, "f64", 0, &f, &err), &err);
    assert_true(f == 0.25f);
    expect_error(ol_gguf_f32(g, "n", 0, &f, &err), OL_CORRUPT, &err, "floating");
    expect_ok(ol_gguf_bool(g, "flag", false, &flag, &err), &err);
    assert_true(flag);
    expect_error(ol_gguf_bool(g, "n", false, &flag, &err), OL_CORRUPT, &err, "boolean");
    expect_ok(ol_gguf_string(g, "general.architecture", &s, &err), &err);
    assert_int_equal(s.len, 5);
    assert_true(ol_gguf_is(g, "general.architecture", "llama"));
    assert_false(ol_gguf_is(g, "general.architecture", "llam"));
    expect_error(ol_gguf_string(g, "n", &s, &err), OL_CORRUPT, &err, "string");
    assert_string_equal(ol_gguf_printable((ol_gguf_str){"a\nb\377cdefgh", 10}, text, 8), "a?b?cde");
    ol_gguf_close(g);
    ol_buf_free(&file);
}

static void test_arrays_and_tensors(void **state)
{
    ol_buf file = rich_file();
    ol_gguf *g;
    ol_error err;
    ol_tensor t;
    size_t n;
    const ol_gguf_str *words, *again;
    const float *floats;
    const int32_t *ints;

    (void)state;
    expect_ok(ol_gguf_bytes(file.data, file.len, "x", &g, &err), &err);
    expect_ok(ol_gguf_string_array(g, "words", &words, &n, &err), &err);
    assert_int_equal(n, 2);
    assert_memory_equal(words[0].ptr, "ab", 2);
    assert_int_equal(words[1].len, 0);
    expect_ok(ol_gguf_string_array(g, "words", &again, &n, &err), &err);
    assert_ptr_equal(words, again);
    expect_ok(ol_gguf_i32_array(g, "bytes", &ints, &n, &err), &err);
    assert_int_equal(n, 3);
    assert_int_equal(ints[2], 255);
    expect_ok(ol_gguf_f32_array(g, "scores", &floats, &n, &err), &err);
    assert_true(floats[1] == -1.0f);
    expect_ok(ol_gguf_f32_array(g, "none", &floats, &n, &err), &err);
    assert_int_equal(n, 0);
    expect_error(ol_gguf_f32_array(g, "bytes", &floats, &n, &err), OL_CORRUPT, &err, "bytes");
    expect_error(ol_gguf_i32_array(g, "nested", &ints, &n, &err), OL_CORRUPT, &err, "nested");
    expect_error(ol_gguf_string_array(g, "scores", &words, &n, &err), OL_CORRUPT, &err, "scores");
    expect_ok(ol_gguf_get(g, "t.one", &t, &err), &err);
    assert_int_equal(t.n_dims, 2);
    assert_int_equal(t.shape[0], 3); /* rows: ne[1] */
    assert_int_equal(t.shape[1], 4);
    assert_true(((const float *)t.data)[11] == 12.0f);
    expect_error(ol_gguf_get(g, "t.odd", &t, &err), OL_UNSUPPORTED, &err, "I32");
    expect_error(ol_gguf_get(g, "t.new", &t, &err), OL_UNSUPPORTED, &err, "99");
    expect_error(ol_gguf_get(g, "t", &t, &err), OL_NOT_FOUND, &err, "\"t\"");
    ol_gguf_close(g);
    ol_buf_free(&file);
}

static void test_every_truncation_fails(void **state)
{
    ol_buf file = rich_file();
    ol_error err;
    size_t last = file.len;

    (void)state;
    while (last > 0 && file.data[last - 1] == 0) /* padding at the end belongs to nothing */
        last--;
    for (size_t len = 0; len < last; len++) {
        uint8_t *exact = malloc(len ? len : 1);
        ol_buf part = {.data = exact, .len = len};

        memcpy(exact, file.data, len);
        if (open_bytes(&part, &err) == OL_OK)
            /* the last tensor is of an unknown type, whose size nobody knows */
            assert_true(len >= last - 8);
        free(exact);
    }
    ol_buf_free(&file);
}

static void expect_bad(gg_builder *b, const char *word)
{
    ol_buf file = gg_end(b);
    ol_error err;

    expect_error(open_bytes(&file, &err), OL_CORRUPT, &err, word);
    ol_buf_free(&file);
    *b = (gg_builder){0};
}

static void describe_tensor(gg_builder *b, uint32_t n_dims, uint64_t ne0, uint64_t ne1,
                            uint32_t type, uint64_t offset)
{
    gg_put_str(&b->tensors, "t");
    ol_buf_put_u32(&b->tensors, n_dims);
    ol_buf_put_u64(&b->tensors, ne0);
    ol_buf_put_u64(&b->tensors, ne1);
    ol_buf_put_u32(&b->tensors, type);
    ol_buf_put_u64(&b->tensors, offset);
    b->n_tensors++;
}

static void test_hostile(void **state)
{
    gg_builder b = {0};

    (void)state;
    put_array(&b, "a", 8, UINT64_MAX);
    expect_bad(&b, "\"a\"");
    put_array(&b, "a", 12, (uint64_t)1 << 61);
    expect_bad(&b, "\"a\"");
    put_array(&b, "a", 13, 1);
    expect_bad(&b, "\"a\"");
    for (int i = 0; i < 6; i++)
        i ? (ol_buf_put_u32(&b.meta, 9), ol_buf_put_u64(&b.meta, 1)) : put_array(&b, "a", 9, 1);
    expect_bad(&b, "\"a\"");
    gg_key(&b, "a", 8);
    ol_buf_put_u64(&b.meta, UINT64_MAX - 3);
    expect_bad(&b, "\"a\"");
    gg_key(&b, "a", 77);
    expect_bad(&b, "\"a\"");
    gg_key(&b, "", 4);
    expect_bad(&b, "key");
    gg_key(&b, "a\nb", 4);
    expect_bad(&b, "key");
    gg_u32(&b, "a", 1);
    gg_u32(&b, "a", 1);
    expect_bad(&b, "twice");
    gg_u32(&b, "a", 1);
    b.n_meta = UINT64_MAX;
    expect_bad(&b, "count");
    gg_u32(&b, "general.alignment", 24);
    gg_tensor(&b, "t", 4, 0);
    expect_bad(&b, "alignment");
    gg_u32(&b, "general.alignment", 0);
    gg_tensor(&b, "t", 4, 0);
    expect_bad(&b, "alignment");
    gg_tensor(&b, "t", 4, 0);
    gg_tensor(&b, "t", 4, 0);
    expect_bad(&b, "twice");
    describe_tensor(&b, 5, 1, 1, 0, 0);
    expect_bad(&b, "dimensions");
    describe_tensor(&b, 2, 0, 1, 0, 0);
    expect_bad(&b, "zero");
    describe_tensor(&b, 2, (uint64_t)1 << 40, (uint64_t)1 << 40, 0, 0);
    expect_bad(&b, "overflows");
    describe_tensor(&b, 2, (uint64_t)1 << 30, (uint64_t)1 << 30, 0, 0);
    expect_bad(&b, "past the end");
    describe_tensor(&b, 2, 31, 1, 8, 0);
    expect_bad(&b, "blocks");
    describe_tensor(&b, 2, 1, 1, 0, 8);
    expect_bad(&b, "aligned");
    describe_tensor(&b, 2, 1, 1, 0, UINT64_MAX - 31);
    expect_bad(&b, "past the end");
    gg_tensor(&b, "u", 16, 0);
    describe_tensor(&b, 2, 8, 1, 0, 32);
    expect_bad(&b, "overlaps");
}

static void test_versions(void **state)
{
    ol_buf file = rich_file();
    ol_error err;

    (void)state;
    file.data[4] = 2;
    expect_ok(open_bytes(&file, &err), &err);
    file.data[4] = 1;
    expect_error(open_bytes(&file, &err), OL_UNSUPPORTED, &err, "version 1");
    file.data[0] = 'g';
    expect_error(open_bytes(&file, &err), OL_CORRUPT, &err, "magic");
    ol_buf_free(&file);
}

/* -- the description ------------------------------------------------------------------ */

static gg_builder model(const char *arch)
{
    static const struct {
        const char *key;
        uint32_t value;
    } sizes[] = {{"embedding_length", 64},    {"block_count", 2},
                 {"attention.head_count", 4}, {"feed_forward_length", 96},
                 {"context_length", 512},     {"attention.head_count_kv", 2}};
    gg_builder b = {0};
    char key[96];

    gg_str(&b, "general.architecture", arch);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        snprintf(key, sizeof(key), "%s.%s", arch, sizes[i].key);
        gg_u32(&b, key, sizes[i].value);
    }
    snprintf(key, sizeof(key), "%s.attention.layer_norm_rms_epsilon", arch);
    gg_f32(&b, key, 1e-5f);
    gg_tensor(&b, "token_embd.weight", 64, 100);
    return b;
}

static ol_code describe(gg_builder b, ol_model_config *config, ol_error *err)
{
    ol_buf file = gg_end(&b);
    ol_gguf *g;
    ol_code code;

    expect_ok(ol_gguf_bytes(file.data, file.len, "x.gguf", &g, err), err);
    code = ol_gguf_config(g, config, err);
    ol_gguf_close(g);
    ol_buf_free(&file);
    return code;
}

static void test_description(void **state)
{
    ol_model_config c;
    ol_error err;
    gg_builder b = model("llama");

    (void)state;
    gg_u32(&b, "tokenizer.ggml.eos_token_id", 2);
    gg_u32(&b, "tokenizer.ggml.eot_token_id", 2);
    gg_u32(&b, "tokenizer.ggml.eom_token_id", 5);
    gg_u32(&b, "tokenizer.ggml.bos_token_id", 1);
    expect_ok(describe(b, &c, &err), &err);
    assert_int_equal(c.family, OL_FAMILY_LLAMA);
    assert_int_equal(c.vocab, 100);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.n_kv_heads, 2);
    assert_true(c.rope.interleaved);
    assert_true(c.tie_embeddings);
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos[1], 5);
    assert_int_equal(c.bos, 1);
    b = model("qwen3");
    gg_u32(&b, "qwen3.attention.key_length", 32);
    gg_u32(&b, "qwen3.attention.value_length", 32);
    gg_tensor(&b, "output.weight", 64, 100);
    expect_ok(describe(b, &c, &err), &err);
    assert_true(c.qk_norm);
    assert_false(c.rope.interleaved);
    assert_false(c.tie_embeddings);
    assert_int_equal(c.head_dim, 32);
    b = model("qwen2");
    gg_tensor(&b, "blk.0.attn_q.bias", 64, 0);
    expect_ok(describe(b, &c, &err), &err);
    assert_true(c.qkv_bias);
}

static void test_description_rope(void **state)
{
    ol_model_config c;
    ol_error err;
    float freq[8];
    gg_builder b = model("llama");

    (void)state;
    gg_f32(&b, "llama.rope.scaling.factor", 4.0f); /* no type: linear */
    expect_ok(describe(b, &c, &err), &err);
    assert_int_equal(c.rope.scaling, OL_ROPE_LINEAR);
    b = model("llama");
    gg_f32(&b, "llama.rope.scaling.factor", 4.0f);
    gg_str(&b, "llama.rope.scaling.type", "none");
    expect_ok(describe(b, &c, &err), &err);
    assert_int_equal(c.rope.scaling, OL_ROPE_PLAIN);
    b = model("llama");
    gg_str(&b, "llama.rope.scaling.type", "yarn");
    gg_f32(&b, "llama.rope.scaling.factor", 4.0f);
    gg_u32(&b, "llama.rope.scaling.original_context_length", 128);
    expect_ok(describe(b, &c, &err), &err);
    assert_int_equal(c.rope.scaling, OL_ROPE_YARN);
    b = model("llama");
    gg_str(&b, "llama.rope.scaling.type", "longrope");
    expect_error(describe(b, &c, &err), OL_UNSUPPORTED, &err, "longrope");
    b = model("llama");
    gg_tensor(&b, "rope_freqs.weight", 8, 0); /* 1 .. 8 */
    expect_ok(describe(b, &c, &err), &err);
    assert_true(ol_rope_frequencies(&c, freq) == 1.0f);
    assert_true(freq[0] == 1.0f && freq[1] * 2 > 0.316f && freq[1] * 2 < 0.3163f);
    b = model("llama");
    gg_tensor(&b, "rope_freqs.weight", 7, 0);
    expect_error(describe(b, &c, &err), OL_CORRUPT, &err, "rope_freqs");
}

static void test_description_refusals(void **state)
{
    ol_model_config c;
    ol_error err;
    gg_builder b = model("gemma");

    (void)state;
    expect_error(describe(b, &c, &err), OL_UNSUPPORTED, &err, "gemma");
    b = model("llama");
    gg_u32(&b, "llama.expert_count", 8);
    expect_error(describe(b, &c, &err), OL_UNSUPPORTED, &err, "expert_count");
    b = model("llama");
    gg_u32(&b, "split.count", 3);
    expect_error(describe(b, &c, &err), OL_UNSUPPORTED, &err, "parts");
    b = model("llama");
    gg_u32(&b, "tokenizer.ggml.eos_token_id", 100);
    expect_error(describe(b, &c, &err), OL_CORRUPT, &err, "eos_token_id");
    b = model("llama");
    gg_u32(&b, "llama.attention.key_length", 24);
    gg_u32(&b, "llama.attention.value_length", 32);
    expect_error(describe(b, &c, &err), OL_UNSUPPORTED, &err, "lengths");
    b = (gg_builder){0};
    gg_str(&b, "general.architecture", "llama");
    expect_error(describe(b, &c, &err), OL_CORRUPT, &err, "missing");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_metadata),
        cmocka_unit_test(test_arrays_and_tensors),
        cmocka_unit_test(test_every_truncation_fails),
        cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_description),
        cmocka_unit_test(test_description_rope),
        cmocka_unit_test(test_description_refusals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
