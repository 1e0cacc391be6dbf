/* weights_internal.h: an opened model (private to weights*.c and model_digest.c). */
#ifndef OL_FORMATS_WEIGHTS_INTERNAL_H
#define OL_FORMATS_WEIGHTS_INTERNAL_H

#include "base/arena.h"
#include "engine/formats/safetensors.h"
#include "engine/formats/weights.h"

struct ol_model_source {
    ol_model_kind kind;
    ol_arena *arena;
    const char *path, *name, *format;
    ol_model_config config;
    ol_map config_file; /* FOLDER: config.json */
    ol_safetensors *st;
    ol_gguf *gguf;
};

#define OL_SOURCE_NAME 160

/* The name that a tensor of this role has in this kind of model. */
void ol_source_name(ol_model_kind kind, int role, int layer, char out[OL_SOURCE_NAME]);

size_t ol_source_count(const ol_model_source *src);
/* Tensor number i of either container, types by their names. */
ol_safetensors_entry ol_source_at(const ol_model_source *src, size_t i);
/* As ol_model_source_tensor, but the data may be unaligned. */
ol_code ol_source_find(const ol_model_source *src, int role, int layer, ol_tensor *tensor,
                       ol_error *err);

#endif
