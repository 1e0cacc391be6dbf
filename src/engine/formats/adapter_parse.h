/* adapter_parse.h: what peft.c, gguf_lora.c and adapter_file.c share. */
#ifndef OL_FORMATS_ADAPTER_PARSE_H
#define OL_FORMATS_ADAPTER_PARSE_H

#include "engine/formats/adapter_file.h"

/* Modules under construction, by [layer][module]; a and b have no data until found. */
typedef struct ol_adapter_draft {
    const ol_model_config *base; /* NULL: unknown */
    ol_arena *arena;
    int n_layers;            /* of the base, or as many as names may mention */
    ol_lora_module *modules; /* [n_layers][OL_MODULES] */
    const char *base_model;
} ol_adapter_draft;

ol_lora_module *ol_draft_module(ol_adapter_draft *draft, int layer, ol_module module);
/* "layer 3 q_proj" for messages. */
const char *ol_draft_name(const ol_lora_module *module, char out[64]);

/* Every tensor lands in the draft; scales are set. */
ol_code ol_peft_parse(const void *bytes, size_t len, const char *config, size_t config_len,
                      ol_adapter_draft *draft, ol_error *err);
ol_code ol_gguf_lora_parse(const void *bytes, size_t len, ol_adapter_draft *draft, ol_error *err);

#endif
