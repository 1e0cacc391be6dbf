/*
 * device.h: the seam between the engine and whatever computes.
 *
 * A device is a shared object (openlora_cpu.so, openlora_cuda.so) that exports
 * one symbol, OL_DEVICE_SYMBOL, of type ol_device_entry. It fills a table of
 * coarse, fused operations over opaque handles. This header and src/base are all
 * that a device may include.
 *
 * Rules
 *  1. One thread (the engine's) calls a device, but for lora_create, lora_create_in, lora_need,
 *     lora_free, lora_bytes, leave and host_alloc, which one other thread may call at any time, in
 *     the middle of a step, too. A device may use threads of its own inside a call; in those it
 *     does not hold up a step.
 *  2. Operations between step_begin and step_end are ordered and may be
 *     asynchronous; results are visible to the host after step_end, or after
 *     `logits` or `choose`, whichever comes first. Errors may surface at either.
 *  3. Every reduction runs in an order that depends on the row alone, never on
 *     how many or which other rows share the step: promise P6.
 *  4. Handles belong to the device that made them. Host memory passed in is only
 *     read during the call, but for weight bytes whose `keep` says that they
 *     outlive the device (a mapped file): those may be used in place.
 *  5. Shapes were checked by the engine (model.c, formats/); a device checks
 *     what it alone knows (memory, supported types) and may assert the rest.
 *  6. Activations are opaque; the engine never looks into a buffer. Their type
 *     is the device's choice (the CPU device: float).
 */
#ifndef OL_DEVICE_H
#define OL_DEVICE_H

#include "base/choice.h"
#include "base/status.h"
#include "base/tensor.h"

#define OL_DEVICE_ABI 3u
#define OL_DEVICE_SYMBOL "ol_device_entry_point"

typedef struct ol_device ol_device; /* an opened device */
typedef struct ol_weight ol_weight; /* a base weight in the device's layout */
typedef struct ol_lora ol_lora;     /* one adapter, all its modules */
typedef struct ol_kv ol_kv;         /* the page pool of all layers */
typedef struct ol_buffer ol_buffer; /* activations: up to max_rows rows */

/* The linear modules of a decoder layer that a base weight or an adapter names. */
typedef enum ol_module {
    OL_MOD_Q,
    OL_MOD_K,
    OL_MOD_V,
    OL_MOD_O,
    OL_MOD_GATE,
    OL_MOD_UP,
    OL_MOD_DOWN,
} ol_module;

#define OL_MODULES 7

/* How base weights are stored on the device. AS_IS keeps the file's type (K types
 * may become the nearest block type that the device computes on). Only the linear
 * modules and the lm head are ever quantised; norms and biases never. FP8 is e4m3 with a
 * scale for each row; a device may refuse it. */
typedef enum ol_quantization {
    OL_QUANT_AS_IS,
    OL_QUANT_INT8,
    OL_QUANT_INT4,
    OL_QUANT_FP8
} ol_quantization;

typedef struct ol_device_options {
    int threads;              /* CPU threads; 0: one per core available */
    int device_index;         /* which GPU */
    size_t memory_limit;      /* bytes the device may take; 0: no limit */
    const char *isa;          /* CPU: NULL or "auto", "portable", "avx2", "avx512", ...:
                               * the best path to use at most, for tests */
    int max_rows;             /* token rows of a step at most */
    int max_seqs;             /* sequences of a step at most */
    int max_logit_rows;       /* rows of logits of a step at most */
    ol_quantization adapters; /* AS_IS; or INT8: A's rows and B's columns, the ranks, each with a
                               * scale of its own: its largest magnitude / 127 */
} ol_device_options;

typedef struct ol_device_info {
    char name[64];         /* "cpu", "cuda" */
    char description[192]; /* processor or card, instruction set in use */
    int threads;
    size_t memory_used;  /* weights, adapters, KV and buffers, bytes */
    size_t memory_total; /* 0 when not known */
    unsigned kv_dtypes;  /* 1 << ol_dtype for each that the KV cache can be of */
    bool own_memory;     /* not the host's */
} ol_device_info;

/* A weight to place. */
typedef struct ol_weight_desc {
    ol_tensor tensor; /* matrix {rows, cols}, or vector {n} */
    enum {
        OL_WEIGHT_MATRIX,             /* of a linear module or the lm head */
        OL_WEIGHT_EMBEDDING,          /* rows are gathered by token */
        OL_WEIGHT_EMBEDDING_AND_HEAD, /* tied: both, one copy */
        OL_WEIGHT_VECTOR              /* norm weight or bias; becomes F32 */
    } use;
    ol_quantization quantization;
    bool keep; /* tensor.data outlives the device */
} ol_weight_desc;

/* One adapted module: delta = scale * B (A x). A: {rank, in}, B: {out, rank};
 * F32, F16 or BF16. */
typedef struct ol_lora_module {
    int layer;
    ol_module module;
    int rank;
    float scale; /* alpha / rank, or alpha / sqrt(rank) */
    ol_tensor a, b;
} ol_lora_module;

/* Static facts of a layer's attention. */
typedef struct ol_attention {
    int n_heads, n_kv_heads, head_dim;
    float scale;           /* of q.k, usually 1 / sqrt(head_dim) */
    int window;            /* sliding window: a row at position p sees (p - window, p]; 0: all */
    bool rope_interleaved; /* pairs (2i, 2i+1), as GGUF's llama; else (i, i + rotary/2) */
    int rotary_dims;       /* leading dims of a head that rotate */
    const float *inv_freq; /* rotary_dims / 2, scaling applied; lives as long as the model */
    float rope_factor;     /* multiplies cos and sin (yarn); 1 otherwise */
    float norm_eps;        /* of q_norm and k_norm */
} ol_attention;

/* Weights of a layer. Optional ones are NULL. */
typedef struct ol_layer {
    int index;
    ol_weight *attn_norm, *mlp_norm;
    ol_weight *linear[OL_MODULES];
    ol_weight *bias[OL_MODULES];
    ol_weight *q_norm, *k_norm; /* per head, {head_dim} */
    ol_attention attention;
} ol_layer;

/* One (adapter, weight) of a request. */
typedef struct ol_lora_ref {
    ol_lora *lora;
    float weight;
} ol_lora_ref;

/* A sequence's part of a step: n_rows consecutive rows from first_row, at
 * positions first_pos .. first_pos + n_rows - 1. Its KV, this step's included,
 * lies in pages[0 .. ceil((first_pos + n_rows) / page_tokens) - 1]; position p in
 * slot p % page_tokens of pages[p / page_tokens]. Sequences come in row order and
 * cover all rows of the step. */
typedef struct ol_step_seq {
    int first_row, n_rows;
    int first_pos;
    const int32_t *pages;
    int n_loras;
    const ol_lora_ref *loras;
    /* Out, host memory or NULL, [n_rows][n_loras]: energy[r * n_loras + i] += sum over all
     * adapted modules of |weight * delta_i(x)|^2 at the sequence's row r, for the measured
     * share. Filled by step_end. Only asked for when n_loras > 1. By rows, since a row's is
     * the same in whatever step it is computed. */
    double *energy;
} ol_step_seq;

/* A step: the ragged batch. Lives until step_end. */
typedef struct ol_step {
    int n_rows;
    const int32_t *tokens; /* [n_rows] */
    int n_seqs;
    const ol_step_seq *seqs;
    int n_logit_rows;
    const int32_t *logit_rows; /* rows whose logits are wanted, ascending */
    const ol_pick *picks;      /* [n_logit_rows]: how `choose` takes their tokens; or NULL */
} ol_step;

typedef struct ol_kv_desc {
    int n_layers, n_kv_heads, head_dim;
    int page_tokens; /* a power of two, 16 .. 256 */
    int n_pages;
    ol_dtype dtype; /* F32, F16, BF16 or F8E4M3, as ol_device_info.kv_dtypes says */
    bool pool;      /* a page is one stretch of memory, all layers: adapters may lie in pages */
} ol_kv_desc;

/* What an adapter takes of a pool: n_runs runs, each of `run` neighbouring pages. */
typedef struct ol_lora_need {
    int32_t n_runs, run;
} ol_lora_need;

typedef void (*ol_progress_fn)(void *context, size_t done, size_t total);

typedef struct ol_device_table {
    uint32_t abi; /* OL_DEVICE_ABI */
    const char *name;

    /* -- life ------------------------------------------------------------- */
    ol_code (*open)(const ol_device_options *options, ol_device **device, ol_error *err);
    /* All handles must have been freed. */
    void (*close)(ol_device *device);
    void (*info)(ol_device *device, ol_device_info *info);

    /* -- memory ------------------------------------------------------------ */
    ol_code (*weight_create)(ol_device *device, const ol_weight_desc *desc, ol_weight **weight,
                             ol_error *err);
    void (*weight_free)(ol_device *device, ol_weight *weight);

    ol_code (*lora_create)(ol_device *device, const ol_lora_module *modules, int n_modules,
                           ol_lora **lora, ol_error *err);
    void (*lora_free)(ol_device *device, ol_lora *lora);
    size_t (*lora_bytes)(ol_device *device, const ol_lora *lora);

    ol_code (*kv_create)(ol_device *device, const ol_kv_desc *desc, ol_kv **kv, ol_error *err);
    void (*kv_free)(ol_device *device, ol_kv *kv);
    /* Copies the first n_tokens slots of a page, all layers (copy on write). */
    ol_code (*kv_copy_page)(ol_device *device, ol_kv *kv, int32_t from, int32_t to, int n_tokens,
                            ol_error *err);

    /* max_rows x cols. */
    ol_code (*buffer_create)(ol_device *device, int64_t cols, ol_buffer **buffer, ol_error *err);
    void (*buffer_free)(ol_device *device, ol_buffer *buffer);

    /* -- a step ------------------------------------------------------------ */
    ol_code (*step_begin)(ol_device *device, const ol_step *step, ol_error *err);

    /* x[r] = embedding[tokens[r]] */
    ol_code (*embed)(ol_device *device, const ol_weight *embedding, ol_buffer *x, ol_error *err);

    /* y[r] = x[r] / rms(x[r]) * weight */
    ol_code (*rms_norm)(ol_device *device, const ol_buffer *x, const ol_weight *weight, float eps,
                        ol_buffer *y, ol_error *err);

    /* From y: q, k, v = linear + bias + LoRA; q_norm and k_norm per head if the
     * layer has them; RoPE at each row's position; k and v into the row's page;
     * q (n_heads * head_dim wide) out. */
    ol_code (*qkv)(ol_device *device, const ol_layer *layer, const ol_buffer *y, ol_kv *kv,
                   ol_buffer *q, ol_error *err);

    /* o[r] = causal attention of q[r] over its sequence's pages, window applied. */
    ol_code (*attention)(ol_device *device, const ol_layer *layer, const ol_buffer *q,
                         const ol_kv *kv, ol_buffer *o, ol_error *err);

    /* x[r] += O o[r] + bias + LoRA */
    ol_code (*attention_out)(ol_device *device, const ol_layer *layer, const ol_buffer *o,
                             ol_buffer *x, ol_error *err);

    /* x[r] += Down (silu(Gate y[r]) * Up y[r]), each with LoRA (and bias, if any) */
    ol_code (*mlp)(ol_device *device, const ol_layer *layer, const ol_buffer *y, ol_buffer *x,
                   ol_error *err);

    /* Final norm and head for the step's logit rows. *logits: float
     * [n_logit_rows][rows of head], host memory of the device, valid until the
     * next step_begin. */
    ol_code (*logits)(ol_device *device, const ol_buffer *x, const ol_weight *norm, float eps,
                      const ol_weight *head, const float **logits, ol_error *err);

    ol_code (*step_end)(ol_device *device, ol_error *err);

    /* -- optional: NULL where the device has none --------------------------- */
    /* In place of `logits`: tokens are chosen on the device, as step->picks say, and the choices
     * alone come to the host. *choices: [n_logit_rows], host memory of the device, valid until the
     * next step_begin. Picks are checked by the engine: tokens of biases and given ones are below
     * the head's rows, masks cover them. Choices are the engine's own (engine/choose.h), but where
     * the random number falls between two tokens' shares by less than sums round. */
    ol_code (*choose)(ol_device *device, const ol_buffer *x, const ol_weight *norm, float eps,
                      const ol_weight *head, const ol_choice **choices, ol_error *err);

    /* One pool for keys, values and adapters. A page that was another's before has any bytes in
     * it: a device reads no slot that was not written, and an adapter's run is written whole.
     * The engine knows who has which page; runs are the adapter's from before lora_create_in
     * until after lora_free, which leaves their memory alone. */
    /* Bytes of a page, all layers; 0: none can be made so. */
    size_t (*kv_page_bytes)(ol_device *device, const ol_kv_desc *desc);
    /* The same for the same modules, always. */
    ol_code (*lora_need)(ol_device *device, const ol_kv *kv, const ol_lora_module *modules,
                         int n_modules, ol_lora_need *need, ol_error *err);
    /* In pages runs[i] .. runs[i] + run - 1 of a pool, as lora_need says. */
    ol_code (*lora_create_in)(ol_device *device, ol_kv *kv, const int32_t *runs,
                              const ol_lora_module *modules, int n_modules, ol_lora **lora,
                              ol_error *err);

    /* So many processors more (or less) than before are taken by other threads of the engine: a
     * device that computes on processors does without them. On any thread. */
    void (*leave)(ol_device *device, int processors);

    /* Memory of the host from which the device copies fastest; NULL when there is no more. */
    void *(*host_alloc)(ol_device *device, size_t bytes);
    void (*host_free)(ol_device *device, void *bytes);
} ol_device_table;

typedef const ol_device_table *(*ol_device_entry)(void);

/* Loads DIR/openlora_NAME.so and checks its ABI. The object stays loaded. */
ol_code ol_device_load(const char *dir, const char *name, const ol_device_table **table,
                       ol_error *err);

#endif
