/* gguf_internal.h: an opened GGUF file (private to gguf*.c). */
#ifndef OL_FORMATS_GGUF_INTERNAL_H
#define OL_FORMATS_GGUF_INTERNAL_H

#include "base/arena.h"
#include "base/buf.h"
#include "engine/formats/gguf.h"

/* An array, converted. */
typedef struct ol_gguf_array {
    const ol_gguf_entry *entry;
    int kind; /* ARRAY_ in gguf_meta.c */
    void *values;
    struct ol_gguf_array *next;
} ol_gguf_array;

struct ol_gguf {
    ol_map map; /* empty over foreign bytes */
    ol_arena *arena;
    const char *name;
    uint32_t version;
    ol_gguf_entry *entries;
    size_t n_entries;
    ol_gguf_tensor *tensors;
    size_t n_tensors;
    ol_gguf_array *arrays;
};

/* OL_CORRUPT, naming the file and, if any, the key or tensor. */
ol_code ol_gguf_bad(ol_error *err, const ol_gguf *gguf, const char *what, const char *key);
/* Bytes of a value of fixed size; 0 for strings, arrays and unknown types. */
size_t ol_gguf_scalar_bytes(uint32_t type);
ol_gguf_str ol_gguf_read_str(ol_reader *r);

#endif
