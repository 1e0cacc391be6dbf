/* core.h: what the CPU device's files share. */
#ifndef OL_CPU_CORE_H
#define OL_CPU_CORE_H

#include "cpu/matrix.h"
#include "cpu/memory.h"
#include "cpu/panel.h"
#include "cpu/pool.h"
#include "device/device.h"

struct ol_weight {
    int use;
    cpu_matrix m; /* MATRIX, EMBEDDING_AND_HEAD */
    cpu_region *home;
    ol_tensor rows; /* EMBEDDING: as in the file, gathered by row */
    void *own;      /* EMBEDDING: our copy of the bytes, when they are not kept */
    float *vector;  /* VECTOR, zero-padded to whole panels */
    int64_t n;
    size_t bytes; /* what we allocated */
};

struct ol_buffer {
    float *data; /* [max_rows][stride] */
    int64_t cols, stride;
    size_t bytes;
};

/* Modules that share their input also share a pass over it: their A matrices lie
 * one below the other in one matrix. */
typedef enum cpu_input { INPUT_QKV, INPUT_O, INPUT_GATE_UP, INPUT_DOWN } cpu_input;

#define CPU_INPUTS 4

typedef struct cpu_lora_part {
    int rank;   /* 0: not adapted */
    int offset; /* of its part of h */
    float scale;
    cpu_matrix b;
    float *gram;   /* B'B, [rank][rank], of the numbers in b */
    float *scales; /* in eight bits: of each rank, for h; NULL: 1 */
} cpu_lora_part;

typedef struct cpu_lora_group {
    int rank; /* of all parts together; 0: none is adapted */
    cpu_matrix a;
    cpu_lora_part parts[3]; /* in the order of ol_module */
} cpu_lora_group;

struct ol_lora {
    int n_layers;
    cpu_lora_group *groups; /* [n_layers][CPU_INPUTS], then all matrices: see lora.c */
    size_t bytes;
    bool pooled;    /* in pages of a pool, which are not its own */
    uint64_t stamp; /* segment.c: the entry of the step that `segment` belongs to */
    int segment;
};

struct ol_kv {
    ol_kv_desc desc;
    uint8_t *data; /* [layer][page][kv head]{k, v}, or [page][layer]..: see panel.h */
    size_t head_stride, page_stride, layer_stride, bytes;
    size_t page_bytes; /* of a page, all layers */
};

/* All rows of a step whose request has this adapter as entry number `entry` of its
 * list. Segments are sorted by entry, so that a row's deltas are added in the order
 * of its list; a row is at most once in an entry. */
typedef struct cpu_segment {
    const ol_lora *lora;
    int entry, n;
    int32_t *rows;
    float *weights;
    double *energy; /* per row; NULL: nobody asks for it */
} cpu_segment;

/* cos and sin for every row of the step: [n_rows][2][half]. */
typedef struct cpu_rope {
    const float *inv_freq;
    float factor;
    int half;
    cpu_scratch table;
} cpu_rope;

#define CPU_ROPES 4 /* kinds of layers in a model at most, before tables are remade */

struct ol_device {
    ol_device_options options;
    const cpu_kernels *kernels;
    cpu_pool *pool;
    cpu_memory memory;
    char processor[128];

    /* The step. */
    const ol_step *step;
    int *row_pos, *row_seq; /* [max_rows] */
    cpu_segment *segments;
    int n_segments;
    uint64_t stamp;
    cpu_scratch segment_space;
    cpu_rope ropes[CPU_ROPES];
    int n_ropes;

    /* Working memory of operations; [2]: of both halves of an MLP. */
    cpu_scratch tiles[2], shrunk[2], strips, attention;
    cpu_scratch k, v, act, normed, logits;
};

/* -- adapters ------------------------------------------------------------------------- */

static inline cpu_input cpu_input_of(ol_module module)
{
    return module <= OL_MOD_V     ? INPUT_QKV
           : module == OL_MOD_O   ? INPUT_O
           : module < OL_MOD_DOWN ? INPUT_GATE_UP
                                  : INPUT_DOWN;
}

static inline int cpu_part_of(ol_module module)
{
    return module <= OL_MOD_V ? (int)module : module == OL_MOD_UP ? 1 : 0;
}

/* NULL when the adapter leaves this input alone. */
const cpu_lora_group *cpu_lora_find(const ol_lora *lora, int layer, cpu_input input);
ol_code cpu_segments_build(ol_device *device, ol_error *err);
/* Sums up what the segments' rows came to. */
void cpu_segments_end(ol_device *device);

/* -- linear.c, linear_prepare.c: up to three linear modules of one input --------------- */

typedef enum cpu_finish {
    FINISH_STORE,  /* y = */
    FINISH_ADD,    /* y += */
    FINISH_SWIGLU, /* act = silu(gate) * up */
} cpu_finish;

typedef struct cpu_part {
    const ol_weight *weight, *bias; /* bias may be NULL */
    float *y;
    int64_t ldy;
} cpu_part;

/* A x of the rows of a segment. */
typedef struct cpu_shrunk {
    const cpu_segment *segment;
    const cpu_lora_group *group;
    float *h; /* [n][ldh] */
    int64_t ldh;
    int first_unit, row_units, panel_units; /* how phase 1 is cut */
} cpu_shrunk;

typedef struct cpu_linear {
    ol_device *device;
    int layer; /* -1: no adapters (the head) */
    cpu_input input;
    const float *x;
    int64_t ldx;
    int n; /* rows */
    cpu_part parts[3];
    int n_parts;
    cpu_finish finish;
    struct cpu_linear *next; /* SWIGLU: the job that takes act */

    /* set up by cpu_linear_prepare */
    int slot; /* of tiles[] and shrunk[]; also chooses the queues */
    cpu_tiles tiles;
    bool quantize, ready; /* tiles are needed; the job before has made them */
    bool floats;          /* x is needed as floats */
    cpu_shrunk *shrunk;
    int n_shrunk;
    int64_t grain; /* panels of a chunk */
} cpu_linear;

ol_code cpu_linear_prepare(cpu_linear *job, int slot, ol_error *err);
/* On every thread, after preparation. */
void cpu_linear_work(const cpu_linear *job, int thread);
/* Both, for a job that stands alone. */
ol_code cpu_linear_run(cpu_linear *job, ol_error *err);

/* -- the operations of the table ---------------------------------------------------------- */
ol_code cpu_weight_create(ol_device *device, const ol_weight_desc *desc, ol_weight **weight,
                          ol_error *err);
void cpu_weight_free(ol_device *device, ol_weight *weight);
ol_code cpu_lora_create(ol_device *device, const ol_lora_module *modules, int n_modules,
                        ol_lora **lora, ol_error *err);
ol_code cpu_lora_need(ol_device *device, const ol_kv *kv, const ol_lora_module *modules,
                      int n_modules, ol_lora_need *need, ol_error *err);
ol_code cpu_lora_create_in(ol_device *device, ol_kv *kv, const int32_t *runs,
                           const ol_lora_module *modules, int n_modules, ol_lora **lora,
                           ol_error *err);
void cpu_lora_free(ol_device *device, ol_lora *lora);
size_t cpu_lora_bytes(ol_device *device, const ol_lora *lora);
ol_code cpu_kv_create(ol_device *device, const ol_kv_desc *desc, ol_kv **kv, ol_error *err);
void cpu_kv_free(ol_device *device, ol_kv *kv);
size_t cpu_kv_page_bytes(ol_device *device, const ol_kv_desc *desc);
ol_code cpu_kv_copy_page(ol_device *device, ol_kv *kv, int32_t from, int32_t to, int n_tokens,
                         ol_error *err);
ol_code cpu_step_begin(ol_device *device, const ol_step *step, ol_error *err);
ol_code cpu_step_end(ol_device *device, ol_error *err);
ol_code cpu_embed(ol_device *device, const ol_weight *embedding, ol_buffer *x, ol_error *err);
ol_code cpu_rms_norm(ol_device *device, const ol_buffer *x, const ol_weight *weight, float eps,
                     ol_buffer *y, ol_error *err);
ol_code cpu_qkv(ol_device *device, const ol_layer *layer, const ol_buffer *y, ol_kv *kv,
                ol_buffer *q, ol_error *err);
ol_code cpu_attention(ol_device *device, const ol_layer *layer, const ol_buffer *q, const ol_kv *kv,
                      ol_buffer *o, ol_error *err);
ol_code cpu_attention_out(ol_device *device, const ol_layer *layer, const ol_buffer *o,
                          ol_buffer *x, ol_error *err);
ol_code cpu_mlp(ol_device *device, const ol_layer *layer, const ol_buffer *y, ol_buffer *x,
                ol_error *err);
ol_code cpu_logits(ol_device *device, const ol_buffer *x, const ol_weight *norm, float eps,
                   const ol_weight *head, const float **logits, ol_error *err);

#endif
