/* test_formats_util.h: builds the files that the tests of the formats read. */
#ifndef TEST_FORMATS_UTIL_H
#define TEST_FORMATS_UTIL_H

#include "base/arena.h"
#include "base/buf.h"
#include "base/file.h"
#include "base/tensor.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* -- errors ------------------------------------------------------------------------ */

/* Every failure must say what it is about: `word` in message, detail or hint. */
static inline void expect_error(ol_code code, ol_code want, const ol_error *err, const char *word)
{
    if (code == OL_OK)
        fail_msg("no error, expected one about \"%s\"", word);
    if (code != err->code)
        fail_msg("returned %s, error holds %s", ol_code_name(code), ol_code_name(err->code));
    if (!strstr(err->message, word) && !strstr(err->detail, word) && !strstr(err->hint, word))
        fail_msg("\"%s\" is not in: %s | %s | %s", word, err->message, err->detail, err->hint);
    if (code != want)
        fail_msg("%s, expected %s: %s", ol_code_name(code), ol_code_name(want), err->message);
}

static inline void expect_ok(ol_code code, const ol_error *err)
{
    if (code != OL_OK)
        fail_msg("%s: %s | %s", ol_code_name(code), err->message, err->detail);
}

/* -- safetensors ------------------------------------------------------------------- */

/* A header as text and data_len bytes of data: 0, 1, 2 ... */
static inline ol_buf st_raw(const char *header, size_t data_len)
{
    ol_buf buf = {0};

    ol_buf_put_u64(&buf, strlen(header));
    ol_buf_put(&buf, header, strlen(header));
    for (size_t i = 0; i < data_len; i++)
        ol_buf_put_u8(&buf, (uint8_t)(i % 48));
    return buf;
}

/* Adds tensors one by one; st_end puts the parts together. */
typedef struct st_builder {
    ol_buf header, data;
} st_builder;

static inline size_t dtype_size(const char *dtype)
{
    return strcmp(dtype, "F32") == 0 ? 4 : strcmp(dtype, "I64") == 0 ? 8 : 2;
}

/* Values 1, 2, 3 ... in F32; other types get the bytes of small numbers. */
static inline void st_add(st_builder *b, const char *name, const char *dtype, int64_t rows,
                          int64_t cols)
{
    size_t begin = b->data.len, n = (size_t)(rows * (cols ? cols : 1));

    for (size_t i = 0; i < n; i++)
        if (dtype_size(dtype) == 4)
            ol_buf_put_f32(&b->data, (float)(i + 1));
        else if (dtype_size(dtype) == 8)
            ol_buf_put_u64(&b->data, i);
        else
            ol_buf_put_u16(&b->data, (uint16_t)(0x3C00 + i % 256));
    ol_buf_printf(&b->header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%lld",
                  b->header.len ? "," : "", name, dtype, (long long)rows);
    if (cols)
        ol_buf_printf(&b->header, ",%lld", (long long)cols);
    ol_buf_printf(&b->header, "],\"data_offsets\":[%zu,%zu]}", begin, b->data.len);
}

static inline ol_buf st_end(st_builder *b)
{
    ol_buf buf = {0};
    size_t pad = (8 - (b->header.len + 2) % 8) % 8;

    ol_buf_put_u64(&buf, b->header.len + 2 + pad);
    ol_buf_put(&buf, "{", 1);
    ol_buf_put(&buf, b->header.data, b->header.len);
    ol_buf_put(&buf, "}", 1);
    ol_buf_put(&buf, "        ", pad);
    ol_buf_put(&buf, b->data.data, b->data.len);
    ol_buf_free(&b->header);
    ol_buf_free(&b->data);
    assert_false(buf.failed);
    return buf;
}

/* -- GGUF -------------------------------------------------------------------------- */

typedef struct gg_builder {
    ol_buf meta, tensors, data;
    uint64_t n_meta, n_tensors;
} gg_builder;

static inline void gg_put_str(ol_buf *buf, const char *text)
{
    ol_buf_put_u64(buf, strlen(text));
    ol_buf_put(buf, text, strlen(text));
}

static inline void gg_key(gg_builder *b, const char *key, uint32_t type)
{
    gg_put_str(&b->meta, key);
    ol_buf_put_u32(&b->meta, type);
    b->n_meta++;
}

static inline void gg_str(gg_builder *b, const char *key, const char *value)
{
    gg_key(b, key, 8);
    gg_put_str(&b->meta, value);
}

static inline void gg_u32(gg_builder *b, const char *key, uint32_t value)
{
    gg_key(b, key, 4);
    ol_buf_put_u32(&b->meta, value);
}

static inline void gg_f32(gg_builder *b, const char *key, float value)
{
    gg_key(b, key, 6);
    ol_buf_put_f32(&b->meta, value);
}

/* Describes a tensor of ne0 x ne1 (ne1 0: one dimension) at the data's end, and pads. */
static inline void gg_tensor_bytes(gg_builder *b, const char *name, uint32_t type, uint64_t ne0,
                                   uint64_t ne1, const void *bytes, size_t len)
{
    gg_put_str(&b->tensors, name);
    ol_buf_put_u32(&b->tensors, ne1 ? 2 : 1);
    ol_buf_put_u64(&b->tensors, ne0);
    if (ne1)
        ol_buf_put_u64(&b->tensors, ne1);
    ol_buf_put_u32(&b->tensors, type);
    ol_buf_put_u64(&b->tensors, b->data.len);
    ol_buf_put(&b->data, bytes, len);
    while (b->data.len % 32)
        ol_buf_put_u8(&b->data, 0);
    b->n_tensors++;
}

/* F32: 1, 2, 3 ... */
static inline void gg_tensor(gg_builder *b, const char *name, uint64_t ne0, uint64_t ne1)
{
    ol_buf values = {0};

    for (uint64_t i = 0; i < ne0 * (ne1 ? ne1 : 1); i++)
        ol_buf_put_f32(&values, (float)(i + 1));
    gg_tensor_bytes(b, name, 0, ne0, ne1, values.data, values.len);
    ol_buf_free(&values);
}

static inline ol_buf gg_end(gg_builder *b)
{
    ol_buf buf = {0};

    ol_buf_put(&buf, "GGUF", 4);
    ol_buf_put_u32(&buf, 3);
    ol_buf_put_u64(&buf, b->n_tensors);
    ol_buf_put_u64(&buf, b->n_meta);
    ol_buf_put(&buf, b->meta.data, b->meta.len);
    ol_buf_put(&buf, b->tensors.data, b->tensors.len);
    while (buf.len % 32)
        ol_buf_put_u8(&buf, 0);
    ol_buf_put(&buf, b->data.data, b->data.len);
    ol_buf_free(&b->meta);
    ol_buf_free(&b->tensors);
    ol_buf_free(&b->data);
    assert_false(buf.failed);
    return buf;
}

/* -- files ------------------------------------------------------------------------- */

static inline const char *make_folder(char path[64])
{
    strcpy(path, "/tmp/openlora-test-XXXXXX");
    assert_non_null(mkdtemp(path));
    return path;
}

static inline void write_file(const char *folder, const char *name, const void *bytes, size_t len)
{
    char path[512];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, len, f), len);
    fclose(f);
}

static inline void write_text(const char *folder, const char *name, const char *text)
{
    write_file(folder, name, text, strlen(text));
}

static inline void remove_folder(const char *folder)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    assert_int_equal(system(command), 0);
}

/* Where the golden files are, or NULL. */
static inline const char *golden(char out[512], const char *rest)
{
    const char *root = getenv("OPENLORA_GOLDEN");

    snprintf(out, 512, "%s/%s", root ? root : "test/data/golden", rest);
    return access(out, R_OK) == 0 ? out : NULL;
}

#endif
