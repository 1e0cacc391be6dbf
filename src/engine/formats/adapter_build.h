/*
 * adapter_build.h: what the two adapter formats share (private to adapter_*.c,
 * peft*.c and gguf_lora.c). A format puts its tensors one by one, then finishes:
 * pairs, shapes, values and the q/k row order are checked and settled in one place.
 */
#ifndef OL_FORMATS_ADAPTER_BUILD_H
#define OL_FORMATS_ADAPTER_BUILD_H

#include "engine/formats/adapter_file.h"

typedef struct ol_adapter_pair {
    bool has_a, has_b;
    ol_tensor a, b;
    int rank;    /* as the format's description says; 0: as the tensors say */
    float scale; /* set by the format before ol_adapter_finish */
} ol_adapter_pair;

typedef struct ol_adapter_build {
    const ol_model_config *base; /* NULL: inspect */
    bool interleaved;            /* row order of the adapter's q and k */
    size_t most;                 /* bytes that quantised tensors may take as F32; 0: any number */
    ol_arena *arena;
    ol_error *err;
    int n_layers;                           /* highest layer seen + 1 */
    ol_adapter_pair *layers[OL_MAX_LAYERS]; /* [OL_MODULES] each; NULL: none */
} ol_adapter_build;

/* Room in messages for a module's or tensor's name. */
#define OL_ADAPTER_NAME 96

/* "model.layers.3.self_attn.q_proj", as PEFT calls a module of the base. */
void ol_adapter_module_key(int layer, ol_module module, char out[OL_ADAPTER_NAME]);

/* Takes a tensor. Quantised ones become F32, unaligned ones a copy. */
ol_code ol_adapter_put(ol_adapter_build *build, int layer, ol_module module, bool is_b,
                       const ol_tensor *tensor);
ol_code ol_adapter_finish(ol_adapter_build *build, ol_adapter_file *out);

/* The formats. */
ol_code ol_peft_parse(const void *bytes, size_t len, const char *config, size_t config_len,
                      ol_adapter_build *build, ol_adapter_file *out);
ol_code ol_gguf_lora_parse(const void *bytes, size_t len, ol_adapter_build *build,
                           ol_adapter_file *out);

/* A decimal layer number without sign or leading zeros, up to `end`; -1 if it is none
 * or beyond OL_MAX_LAYERS. *rest is where it stopped. */
int ol_adapter_layer(const char *text, const char **rest);

#endif
