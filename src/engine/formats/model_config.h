/*
 * model_config.h: the one description of a decoder that the engine reads.
 *
 * Filled from a Hugging Face config.json (hfconfig.c) or from GGUF metadata
 * (gguf_config.c); families are data here, not code forks. Plain data without
 * pointers: copy it freely. Whoever fills it has checked every field against the
 * limits below and the relations noted, so readers need not.
 */
#ifndef OL_FORMATS_MODEL_CONFIG_H
#define OL_FORMATS_MODEL_CONFIG_H

#include "base/status.h"
#include "device/device.h"

#define OL_MAX_LAYERS 512
#define OL_MAX_HEADS 1024
#define OL_MAX_HEAD_DIM 512
#define OL_MAX_HIDDEN (1 << 18)
#define OL_MAX_FFN (1 << 20)
#define OL_MAX_VOCAB (1 << 22)
#define OL_MAX_CONTEXT (1 << 26)
#define OL_MAX_EOS 16

typedef enum ol_family {
    OL_FAMILY_LLAMA,
    OL_FAMILY_MISTRAL,
    OL_FAMILY_QWEN2,
    OL_FAMILY_QWEN3,
} ol_family;

#define OL_FAMILY_COUNT 4

typedef enum ol_rope_scaling {
    OL_ROPE_PLAIN,
    OL_ROPE_LINEAR,
    OL_ROPE_LLAMA3,
    OL_ROPE_YARN,
} ol_rope_scaling;

typedef struct ol_rope {
    ol_rope_scaling scaling;
    double theta;
    int dims;                     /* leading dims of a head that rotate; even, <= head_dim */
    bool interleaved;             /* see ol_attention.rope_interleaved */
    double factor;                /* LINEAR, LLAMA3, YARN */
    double low_freq, high_freq;   /* LLAMA3 */
    double original_max_position; /* LLAMA3, YARN */
    double beta_fast, beta_slow;  /* YARN */
    double attention_factor;      /* YARN: multiplies cos and sin; resolved, never 0 */
    bool truncate;                /* YARN: correction range to whole dims */
    bool has_divisors;            /* GGUF's rope_freqs.weight: inv_freq[i] /= divisors[i] */
    float divisors[OL_MAX_HEAD_DIM / 2];
} ol_rope;

/* What generation_config.json recommends. Information for defaults; `has_*` says
 * whether the file names it. */
typedef struct ol_generation_defaults {
    bool has_do_sample, has_temperature, has_top_p, has_top_k, has_repetition_penalty;
    bool do_sample;
    double temperature, top_p, repetition_penalty;
    int top_k;
} ol_generation_defaults;

typedef struct ol_model_config {
    ol_family family;
    int vocab, hidden, n_layers;
    int n_heads, n_kv_heads; /* n_heads is a multiple of n_kv_heads */
    int head_dim;            /* even */
    int ffn;
    int max_position; /* context length in tokens */
    float norm_eps;
    bool tie_embeddings;             /* the head is the embedding */
    bool qkv_bias, o_bias, mlp_bias; /* which linears have biases */
    bool qk_norm;                    /* per-head RMS norm of q and k before RoPE */
    int window[OL_MAX_LAYERS];       /* sliding window of each layer; 0: full attention */
    ol_rope rope;
    int32_t bos; /* -1: none */
    int n_eos;
    int32_t eos[OL_MAX_EOS]; /* distinct, within the vocabulary */
    ol_generation_defaults generation;
} ol_model_config;

const char *ol_family_name(ol_family family); /* "llama", "mistral", "qwen2", "qwen3" */

/* "q_proj" .. "down_proj", as Hugging Face calls them. */
const char *ol_module_name(ol_module module);
/* Whether the module lies in the attention block (else in the MLP). */
bool ol_module_in_attention(ol_module module);
/* Shape of a module's weight: {out, in}. */
void ol_module_shape(const ol_model_config *config, ol_module module, int64_t *out, int64_t *in);

/* Fills inv_freq[rope.dims / 2], scaling applied, in float arithmetic as
 * transformers does, and returns what multiplies cos and sin
 * (ol_attention.rope_factor; 1 unless YARN). */
float ol_rope_frequencies(const ol_model_config *config, float *inv_freq);

/* Checks limits and relations; `file` names the origin in errors. Called by whoever
 * fills a config. */
ol_code ol_model_config_check(const ol_model_config *config, const char *file, ol_error *err);

#endif
