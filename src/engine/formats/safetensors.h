/*
 * safetensors.h: tensors from one .safetensors file, from its bytes in memory, or
 * from all shards of a folder. Zero copy: views point into the mapping or bytes.
 *
 * Everything of the specification is checked at open: header size (at most 100 MB)
 * and first byte, well-formed JSON without duplicate names, offsets within the data,
 * in order without holes or overlaps and ending at its end, size == shape x dtype.
 * A dtype we do not compute with (I64, F8_E4M3, ...) is refused only when its tensor
 * is asked for. Data may be unaligned for its type.
 */
#ifndef OL_FORMATS_SAFETENSORS_H
#define OL_FORMATS_SAFETENSORS_H

#include "base/file.h"
#include "base/tensor.h"

typedef struct ol_safetensors ol_safetensors;

#define OL_SAFETENSORS_MAX_HEADER ((size_t)100 * 1000 * 1000)

/* A tensor as the file describes it. */
typedef struct ol_safetensors_entry {
    const char *name;
    const char *dtype; /* as written: "BF16" */
    int n_dims;        /* may exceed OL_MAX_DIMS; then shape holds the first ones */
    int64_t shape[OL_MAX_DIMS];
    const void *data;
    size_t bytes;
} ol_safetensors_entry;

/* Maps one file. */
ol_code ol_safetensors_open(const char *path, ol_safetensors **st, ol_error *err);
/* Over bytes that outlive it. `name` is for errors. max_header: 0 for the default. */
ol_code ol_safetensors_bytes(const void *bytes, size_t len, const char *name, size_t max_header,
                             ol_safetensors **st, ol_error *err);
/* The folder's model.safetensors.index.json with the shards it names, or its
 * model.safetensors, or (without either) all of its *.safetensors files. Shard names
 * are plain file names; a tensor that is in two shards, or only in the index or only in
 * a shard, is an error. */
ol_code ol_safetensors_open_folder(const char *folder, ol_safetensors **st, ol_error *err);
void ol_safetensors_close(ol_safetensors *st); /* NULL is fine */

size_t ol_safetensors_count(const ol_safetensors *st);
/* In order of names (strcmp). */
const ol_safetensors_entry *ol_safetensors_at(const ol_safetensors *st, size_t i);
/* NULL when there is none. */
const ol_safetensors_entry *ol_safetensors_find(const ol_safetensors *st, const char *name);
/* OL_NOT_FOUND when there is none; OL_UNSUPPORTED for a dtype or rank we do not do. */
ol_code ol_safetensors_get(const ol_safetensors *st, const char *name, ol_tensor *tensor,
                           ol_error *err);
/* A value of __metadata__ (of the first shard that has it), or NULL. */
const char *ol_safetensors_metadata(const ol_safetensors *st, const char *key);

/* "F32", "F16" or "BF16" to our type; false for others. */
bool ol_safetensors_dtype(const char *name, ol_dtype *dtype);

#endif
