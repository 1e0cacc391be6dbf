/*
 * gguf.h: GGUF version 2 and 3, little-endian: metadata and tensors, zero copy.
 *
 * At open everything that has a length is checked against the file: counts, keys,
 * strings, arrays (nested at most OL_GGUF_MAX_NESTING), tensor shapes, alignment and
 * extents. A tensor type we do not compute with is refused when the tensor is asked
 * for. Strings in the file are not NUL-terminated: they are ptr + len.
 */
#ifndef OL_FORMATS_GGUF_H
#define OL_FORMATS_GGUF_H

#include "base/file.h"
#include "base/tensor.h"

typedef struct ol_gguf ol_gguf;

#define OL_GGUF_MAX_KEYS 4096
#define OL_GGUF_MAX_TENSORS 65536
#define OL_GGUF_MAX_NESTING 4
#define OL_GGUF_MAX_NAME 256 /* of keys; tensor names: 64 in the specification, 256 here */

typedef enum ol_gguf_type {
    OL_GGUF_U8 = 0,
    OL_GGUF_I8 = 1,
    OL_GGUF_U16 = 2,
    OL_GGUF_I16 = 3,
    OL_GGUF_U32 = 4,
    OL_GGUF_I32 = 5,
    OL_GGUF_F32 = 6,
    OL_GGUF_BOOL = 7,
    OL_GGUF_STRING = 8,
    OL_GGUF_ARRAY = 9,
    OL_GGUF_U64 = 10,
    OL_GGUF_I64 = 11,
    OL_GGUF_F64 = 12,
} ol_gguf_type;

typedef struct ol_gguf_str {
    const char *ptr; /* into the file; not NUL-terminated, may hold any byte */
    size_t len;
} ol_gguf_str;

/* A metadata entry. */
typedef struct ol_gguf_entry {
    const char *key; /* NUL-terminated copy */
    ol_gguf_type type;
    ol_gguf_type of;     /* element type of an ARRAY */
    size_t count;        /* elements of an ARRAY; else 1 */
    const uint8_t *data; /* first value in the file, unaligned */
    size_t bytes;
} ol_gguf_entry;

typedef struct ol_gguf_tensor {
    const char *name;
    uint32_t type; /* ggml's number */
    int n_dims;
    int64_t shape[OL_MAX_DIMS]; /* outermost first, the reverse of GGUF's ne[] */
    const void *data;
    size_t bytes; /* 0 when the type is unknown */
} ol_gguf_tensor;

ol_code ol_gguf_open(const char *path, ol_gguf **gguf, ol_error *err);
/* Over bytes that outlive it. */
ol_code ol_gguf_bytes(const void *bytes, size_t len, const char *name, ol_gguf **gguf,
                      ol_error *err);
void ol_gguf_close(ol_gguf *gguf); /* NULL is fine */
/* Whether the bytes begin as a GGUF file does. */
bool ol_gguf_magic(const void *bytes, size_t len);
const char *ol_gguf_name(const ol_gguf *gguf); /* path or name, for errors */
uint32_t ol_gguf_version(const ol_gguf *gguf);

/* -- metadata ------------------------------------------------------------------ */
size_t ol_gguf_entries(const ol_gguf *gguf);
const ol_gguf_entry *ol_gguf_entry_at(const ol_gguf *gguf, size_t i); /* file order */
const ol_gguf_entry *ol_gguf_find(const ol_gguf *gguf, const char *key);

/* A value, or `missing` when the key is absent. A key of another kind (string where
 * a number is wanted), or out of the result's range, is an error. Integer types
 * convert among each other, f32 and f64 too. */
ol_code ol_gguf_u32(const ol_gguf *gguf, const char *key, uint32_t missing, uint32_t *value,
                    ol_error *err);
ol_code ol_gguf_i64(const ol_gguf *gguf, const char *key, int64_t missing, int64_t *value,
                    ol_error *err);
ol_code ol_gguf_f32(const ol_gguf *gguf, const char *key, float missing, float *value,
                    ol_error *err);
ol_code ol_gguf_bool(const ol_gguf *gguf, const char *key, bool missing, bool *value,
                     ol_error *err);
/* Absent: ptr NULL, len 0. */
ol_code ol_gguf_string(const ol_gguf *gguf, const char *key, ol_gguf_str *value, ol_error *err);
/* For messages: printable ASCII, other bytes as '?', cut to fit, NUL-terminated. */
const char *ol_gguf_printable(ol_gguf_str text, char *out, size_t size);
/* Whether the key is a string equal to `text`. */
bool ol_gguf_is(const ol_gguf *gguf, const char *key, const char *text);

/* Arrays, converted once and kept until close (calling again gives the same memory).
 * Absent: NULL and 0. i32 takes any integer type whose values fit; f32 takes f32 and
 * f64; bool arrays convert to i32 0 and 1. */
ol_code ol_gguf_string_array(ol_gguf *gguf, const char *key, const ol_gguf_str **values,
                             size_t *count, ol_error *err);
ol_code ol_gguf_f32_array(ol_gguf *gguf, const char *key, const float **values, size_t *count,
                          ol_error *err);
ol_code ol_gguf_i32_array(ol_gguf *gguf, const char *key, const int32_t **values, size_t *count,
                          ol_error *err);

/* -- tensors ------------------------------------------------------------------- */
size_t ol_gguf_tensors(const ol_gguf *gguf);
const ol_gguf_tensor *ol_gguf_tensor_at(const ol_gguf *gguf, size_t i); /* file order */
const ol_gguf_tensor *ol_gguf_find_tensor(const ol_gguf *gguf, const char *name);
/* OL_NOT_FOUND when there is none; OL_UNSUPPORTED for a type we do not do. */
ol_code ol_gguf_get(const ol_gguf *gguf, const char *name, ol_tensor *tensor, ol_error *err);
/* ggml's name of a tensor type ("Q5_K"), or "type N" forms as "unknown". */
const char *ol_gguf_tensor_type_name(uint32_t type);

#endif
