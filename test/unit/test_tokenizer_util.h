/* test_tokenizer_util.h: what the tokenizer tests share. Each is one program. */
#ifndef TEST_TOKENIZER_UTIL_H
#define TEST_TOKENIZER_UTIL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "engine/formats/gguf.h"
#include "engine/tokenizer/tokenizer.h"

#define UNUSED __attribute__((unused))

static ol_error err;

/* Data files are where OPENLORA_TEST_DATA says. */
static UNUSED const char *data_path(const char *file)
{
    static char path[2][4096];
    static int turn;
    const char *root = getenv("OPENLORA_TEST_DATA");

    turn ^= 1;
    snprintf(path[turn], sizeof(path[turn]), "%s/%s", root && *root ? root : "../shared/data",
             file);
    return path[turn];
}

static UNUSED bool have(const char *file)
{
    return access(data_path(file), R_OK) == 0;
}

/* For the head of a test that needs data files. */
#define NEED(file)                                                                                 \
    do {                                                                                           \
        if (!have(file)) {                                                                         \
            print_message("SKIPPED %s: no %s\n", __func__, data_path(file));                       \
            skip();                                                                                \
        }                                                                                          \
    } while (0)

static UNUSED ol_map map_file(const char *file)
{
    ol_map map;

    if (ol_map_open(data_path(file), &map, &err) != OL_OK)
        fail_msg("%s", err.message);
    return map;
}

static UNUSED void must(ol_code code)
{
    if (code != OL_OK)
        fail_msg("%s: %s (%s)", ol_code_name(code), err.message, err.detail);
}

static UNUSED ol_tokenizer *open_file(const char *file)
{
    ol_tokenizer *tok = NULL;

    must(ol_tokenizer_from_file(data_path(file), OL_TOK_AUTO, &tok, &err));
    return tok;
}

static UNUSED ol_tokenizer *open_json(const char *json)
{
    ol_tokenizer *tok = NULL;

    must(ol_tokenizer_from_json(json, strlen(json), "test", &tok, &err));
    return tok;
}

static UNUSED int32_t gguf_id(ol_gguf *gguf, const char *key)
{
    uint32_t id;

    must(ol_gguf_u32(gguf, key, UINT32_MAX, &id, &err));
    return (int32_t)id;
}

static UNUSED int8_t gguf_flag(ol_gguf *gguf, const char *key)
{
    bool value;

    if (!ol_gguf_find(gguf, key))
        return -1;
    must(ol_gguf_bool(gguf, key, false, &value, &err));
    return value;
}

static UNUSED ol_span *gguf_spans(ol_gguf *gguf, const char *key, size_t *n)
{
    const ol_gguf_str *strings;
    ol_span *spans;

    must(ol_gguf_string_array(gguf, key, &strings, n, &err));
    spans = calloc(*n + 1, sizeof(*spans));
    for (size_t i = 0; i < *n; i++)
        spans[i] = (ol_span){strings[i].ptr, strings[i].len};
    return spans;
}

static UNUSED void gguf_text(ol_gguf *gguf, const char *key, char *out, size_t size)
{
    ol_gguf_str text;

    must(ol_gguf_string(gguf, key, &text, &err));
    snprintf(out, size, "%.*s", (int)text.len, text.ptr ? text.ptr : "");
}

static UNUSED ol_tokenizer *open_gguf(const char *file)
{
    ol_gguf_vocab v = OL_GGUF_VOCAB_INIT;
    char model[64], pre[64];
    ol_tokenizer *tok = NULL;
    ol_gguf *gguf;
    size_t n;

    must(ol_gguf_open(data_path(file), &gguf, &err));
    gguf_text(gguf, "tokenizer.ggml.model", model, sizeof(model));
    gguf_text(gguf, "tokenizer.ggml.pre", pre, sizeof(pre));
    v.model = model;
    v.pre = pre;
    v.tokens = gguf_spans(gguf, "tokenizer.ggml.tokens", &v.n_tokens);
    v.merges = gguf_spans(gguf, "tokenizer.ggml.merges", &v.n_merges);
    must(ol_gguf_f32_array(gguf, "tokenizer.ggml.scores", &v.scores, &n, &err));
    must(ol_gguf_i32_array(gguf, "tokenizer.ggml.token_type", &v.types, &n, &err));
    v.bos = gguf_id(gguf, "tokenizer.ggml.bos_token_id");
    v.eos = gguf_id(gguf, "tokenizer.ggml.eos_token_id");
    v.unk = gguf_id(gguf, "tokenizer.ggml.unknown_token_id");
    v.add_bos = gguf_flag(gguf, "tokenizer.ggml.add_bos_token");
    v.add_eos = gguf_flag(gguf, "tokenizer.ggml.add_eos_token");
    v.add_space_prefix = gguf_flag(gguf, "tokenizer.ggml.add_space_prefix");
    must(ol_tokenizer_from_gguf_vocab(&v, &tok, &err));
    free((void *)v.tokens);
    free((void *)v.merges);
    ol_gguf_close(gguf);
    return tok;
}

static UNUSED bool is_utf8(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t more = p[i] < 0x80 ? 0 : p[i] < 0xC2 ? 9 : p[i] < 0xE0 ? 1 : p[i] < 0xF0 ? 2 : 3;

        if (p[i] > 0xF4 || more == 9 || i + more >= n + (more == 0))
            return false;
        if (more >= 2 && ((p[i] == 0xE0 && p[i + 1] < 0xA0) || (p[i] == 0xED && p[i + 1] > 0x9F) ||
                          (p[i] == 0xF0 && p[i + 1] < 0x90) || (p[i] == 0xF4 && p[i + 1] > 0x8F)))
            return false;
        for (size_t k = 1; k <= more; k++) {
            if ((p[i + k] & 0xC0) != 0x80)
                return false;
        }
        i += more + 1;
    }
    return true;
}

/* Feeds the ids one by one: every piece is valid UTF-8, and all are the whole. */
static UNUSED void check_stream(const ol_tokenizer *tok, const int32_t *ids, size_t n,
                                unsigned flags)
{
    ol_buf whole = {0}, stream = {0};
    ol_detok d = ol_detok_begin(tok, flags);

    must(ol_detokenize(tok, ids, n, flags, &whole, &err));
    for (size_t i = 0; i < n; i++) {
        size_t before = stream.len;

        must(ol_detok_push(&d, ids[i], &stream, &err));
        if (!is_utf8(stream.data + before, stream.len - before))
            fail_msg("a piece of token %d is not UTF-8", ids[i]);
    }
    must(ol_detok_end(&d, &stream, &err));
    assert_int_equal(stream.len, whole.len);
    if (whole.len > 0)
        assert_memory_equal(stream.data, whole.data, whole.len);
    ol_buf_free(&whole);
    ol_buf_free(&stream);
}

static UNUSED void print_ids(const char *what, const int32_t *ids, size_t n)
{
    print_message("%s:", what);
    for (size_t i = 0; i < n; i++)
        print_message(" %d", ids[i]);
    print_message("\n");
}

/* Encodes and compares. */
static UNUSED void check_encode(const ol_tokenizer *tok, const char *text, size_t len,
                                unsigned flags, const int32_t *want, size_t n)
{
    ol_ids got = {0};

    must(ol_tokenize(tok, text, len, flags, &got, &err));
    if (got.n != n || (n > 0 && memcmp(got.ids, want, n * sizeof(*want)) != 0)) {
        print_ids("expected", want, n);
        print_ids("got     ", got.ids, got.n);
        fail_msg("wrong ids of \"%.*s\"", (int)len, text);
    }
    ol_ids_free(&got);
}

static UNUSED void check_decode(const ol_tokenizer *tok, const int32_t *ids, size_t n,
                                unsigned flags, const char *want, size_t len)
{
    ol_buf got = {0};

    must(ol_detokenize(tok, ids, n, flags, &got, &err));
    if (got.len != len || (len > 0 && memcmp(got.data, want, len) != 0))
        fail_msg("expected \"%.*s\", got \"%.*s\"", (int)len, want, (int)got.len, got.data);
    ol_buf_free(&got);
    check_stream(tok, ids, n, flags);
}

/* A tokenizer.json around a few parts; every argument is JSON. */
static UNUSED char *make_json(const char *normalizer, const char *pre, const char *decoder,
                              const char *added, const char *model)
{
    ol_buf buf = {0};

    ol_buf_printf(&buf,
                  "{\"added_tokens\":%s,\"normalizer\":%s,\"pre_tokenizer\":%s,"
                  "\"post_processor\":null,\"decoder\":%s,\"model\":%s}",
                  added, normalizer, pre, decoder, model);
    ol_buf_put_u8(&buf, 0);
    assert_false(buf.failed);
    return (char *)buf.data;
}

static UNUSED const char fuse[] = "{\"type\":\"Fuse\"}";
static UNUSED const char tiny[] = "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}";

/* A small generator with a fixed seed: the same inputs on every run. */
static UNUSED uint32_t random_u32(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33);
}

#endif
