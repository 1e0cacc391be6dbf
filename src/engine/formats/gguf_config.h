/* gguf_config.h: the model description from GGUF metadata, as llama.cpp reads it. */
#ifndef OL_FORMATS_GGUF_CONFIG_H
#define OL_FORMATS_GGUF_CONFIG_H

#include "engine/formats/gguf.h"
#include "engine/formats/model_config.h"

/* Architectures llama (which is Mistral's too), qwen2 and qwen3. */
ol_code ol_gguf_config(const ol_gguf *gguf, ol_model_config *config, ol_error *err);

#endif
