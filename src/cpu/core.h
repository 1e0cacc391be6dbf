/* core.h: what the CPU device's files share. */
#ifndef OL_CPU_CORE_H
#define OL_CPU_CORE_H

#include "cpu/matrix.h"
#include "cpu/panel.h"
#include "cpu/pool.h"
#include "device/device.h"

struct ol_weight {
    int use;
    cpu_matrix m;   /* MATRIX, EMBEDDING_AND_HEAD */
    ol_tensor rows; /* EMBEDDING: as in the file, gathered by row */
    void *own;      /* EMBEDDING: our copy of the bytes, when they are not kept */
    float *vector;  /* VECTOR, padded to whole panels */
    int64_t n;
    size_t bytes; /* what we allocated */
};

struct ol_buffer {
    float *data; /* [max_rows][cols] */
    int64_t cols;
};

/* One adapted module. */
typedef struct cpu_lora_module {
    int rank; /* 0: not adapted */
    float scale;
    cpu_matrix a, b;
    float *gram; /* B'B, [rank][rank] */
} cpu_lora_module;

struct ol_lora {
    int n_layers;
    cpu_lora_module *modules; /* [n_layers][OL_MODULES] */
    size_t bytes;
};

struct ol_kv {
    ol_kv_desc desc;
    uint8_t *data; /* [layer][page][kv head]{k[dim][page_tokens], v[page_tokens][dim]} */
    size_t head_stride, page_stride, layer_stride, bytes;
};

/* Adjacent rows that use the same adapter with the same weight as entry number
 * `entry` of their lists. Runs are sorted by entry, then by row, so that a row's
 * deltas are added in the order of its list. */
typedef struct cpu_run {
    int first, n;
    const ol_lora *lora;
    float weight;
    int entry;
} cpu_run;

/* Memory that grows to the largest need and stays. */
typedef struct cpu_scratch {
    void *data;
    size_t bytes;
} cpu_scratch;

struct ol_device {
    ol_device_options options;
    const cpu_kernels *kernels;
    cpu_pool *pool;
    size_t used;
    char processor[128];

    const ol_step *step;
    int *row_pos, *row_seq; /* [max_rows] */
    cpu_run *runs;
    int n_runs, max_runs;

    const float *rope_of; /* the inv_freq that cos and sin are of, in this step */
    float rope_factor;
    cpu_scratch rope;   /* [n_rows][2][dims / 2] */
    cpu_scratch quants; /* inputs of block panels */
    cpu_scratch shrunk; /* A x of all runs */
    cpu_scratch k, v, gate, up, normed, logits;
};

/* Memory against options.memory_limit. */
ol_code cpu_reserve(ol_device *device, size_t bytes, const char *what, ol_error *err);
ol_code cpu_scratch_need(ol_device *device, cpu_scratch *scratch, size_t bytes, ol_error *err);

/* lora.c */
ol_code cpu_runs_build(ol_device *device, ol_error *err);
void cpu_lora_energy(ol_device *device, const cpu_run *run, const cpu_lora_module *module,
                     const float *h);

/* linear.c: up to three linear modules of one input, in one go. */
typedef struct cpu_part {
    const ol_weight *weight, *bias; /* bias may be NULL */
    ol_module module;
    float *y;
    int64_t ldy;
    bool add; /* y += instead of y = */
} cpu_part;

typedef struct cpu_linear {
    ol_device *device;
    int layer; /* -1: no adapters (the head) */
    const float *x;
    int64_t ldx;
    int n; /* rows */
    cpu_part parts[3];
    int n_parts;
    bool swiglu; /* parts are gate and up: gate = silu(gate) * up at the end */
    /* Called on every thread when all rows are complete; may be NULL. */
    void (*after)(void *context, int thread, int threads);
    void *after_context;

    /* set up by cpu_linear_run */
    cpu_quants quants;
    float *shrunk;
    size_t *shrunk_at; /* [n_parts][n_runs] offsets into shrunk */
    bool any_block, any_lora;
} cpu_linear;

ol_code cpu_linear_run(cpu_linear *job, ol_error *err);

/* The operations of the table. */
ol_code cpu_lora_create(ol_device *device, const ol_lora_module *modules, int n_modules,
                        ol_lora **lora, ol_error *err);
void cpu_lora_free(ol_device *device, ol_lora *lora);
size_t cpu_lora_bytes(ol_device *device, const ol_lora *lora);
ol_code cpu_kv_create(ol_device *device, const ol_kv_desc *desc, ol_kv **kv, ol_error *err);
void cpu_kv_free(ol_device *device, ol_kv *kv);
ol_code cpu_kv_copy_page(ol_device *device, ol_kv *kv, int32_t from, int32_t to, int n_tokens,
                         ol_error *err);
ol_code cpu_qkv(ol_device *device, const ol_layer *layer, const ol_buffer *y, ol_kv *kv,
                ol_buffer *q, ol_error *err);
ol_code cpu_attention(ol_device *device, const ol_layer *layer, const ol_buffer *q, const ol_kv *kv,
                      ol_buffer *o, ol_error *err);

#endif
