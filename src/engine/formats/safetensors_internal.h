/* safetensors_internal.h: opened shards (private to safetensors*.c). */
#ifndef OL_FORMATS_SAFETENSORS_INTERNAL_H
#define OL_FORMATS_SAFETENSORS_INTERNAL_H

#include "base/arena.h"
#include "engine/formats/json.h"
#include "engine/formats/safetensors.h"

typedef struct ol_safetensors_shard {
    ol_map map;   /* empty over foreign bytes */
    json_t *meta; /* __metadata__ or NULL */
} ol_safetensors_shard;

struct ol_safetensors {
    ol_arena *arena;
    ol_safetensors_shard *shards;
    size_t n_shards;
    ol_safetensors_entry *entries;
    size_t n, cap;
};

ol_code ol_safetensors_create(size_t max_shards, ol_safetensors **st, ol_error *err);
/* Maps and reads one more file. */
ol_code ol_safetensors_add(ol_safetensors *st, const char *path, ol_error *err);
/* After the last file: sorts, and finds names that occur twice. */
ol_code ol_safetensors_finish(ol_safetensors *st, const char *file, ol_error *err);
/* OL_CORRUPT, naming the file and, if any, the tensor. */
ol_code ol_safetensors_bad(ol_error *err, const char *file, const char *tensor, const char *what);

#endif
