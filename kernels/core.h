/* core.h: what the CUDA device's host files share. */
#ifndef OL_GPU_CORE_H
#define OL_GPU_CORE_H

#include "base/status.h"
#include "device/device.h"
#include "kernels/launch.h"

#include <pthread.h>

/* -- memory.c: device memory within one limit -------------------------------------------- */

typedef struct gpu_memory {
    size_t limit; /* 0: what the card has */
    _Atomic size_t used;
    bool no_pool; /* the card has no memory in the order of a stream */
} gpu_memory;

/* Turns what CUDA said into an error: memory into OL_NOMEM, all else into OL_DEVICE. */
ol_code gpu_fail(ol_error *err, cudaError_t code, const char *what);

#define GPU_TRY(expr, what)                                                                        \
    do {                                                                                           \
        cudaError_t try_cuda_ = (expr);                                                            \
        if (try_cuda_ != cudaSuccess)                                                              \
            return gpu_fail(err, try_cuda_, what);                                                 \
    } while (0)

/* Zeroed; NULL on failure. `stream` is where the zeros are written. */
void *gpu_block(gpu_memory *memory, size_t bytes, const char *what, cudaStream_t stream,
                ol_error *err);
void gpu_block_free(gpu_memory *memory, void *p, size_t bytes);
/* The same in the order of a stream, from CUDA's pool: no step waits for it. Not NULL to free. */
void *gpu_block_ordered(gpu_memory *memory, size_t bytes, const char *what, cudaStream_t stream,
                        ol_error *err);
void gpu_block_free_ordered(gpu_memory *memory, void *p, size_t bytes, cudaStream_t stream);
/* What the pool got it keeps, for the next adapter. Or there is none. */
ol_code gpu_pool_keep(gpu_memory *memory, int device_index, ol_error *err);
/* Of the host, to be freed by cudaFreeHost when no copy is under way; NULL on failure. */
ol_code gpu_pinned(void **p, size_t bytes, const char *what, ol_error *err);
void *gpu_host_alloc(ol_device *device, size_t bytes);
void gpu_host_free(ol_device *device, void *bytes);

/* Working memory that grows. */
typedef struct gpu_scratch {
    void *data;
    size_t bytes;
} gpu_scratch;

/* -- proof.c, proof_child.c: whether products of groups may be used --------------------------- */

typedef enum gpu_proof {
    GPU_PROOF_SAME,    /* the card rounds in them as elsewhere */
    GPU_PROOF_DIFFERS, /* it does not */
    GPU_PROOF_FAILED,  /* that could not be seen */
    GPU_PROOF_NONE,    /* it has none */
    GPU_PROOF_NO_CARD, /* there is none that this process, or its child, can use */
} gpu_proof;

/* What was found, and where it differs or failed with which weights, and whether with adapters. */
typedef struct gpu_proven {
    uint8_t found; /* gpu_proof */
    uint8_t kind;  /* gpu_kind */
    bool adapters;
} gpu_proven;

/* In this process. `tell_file` hears, before each attempt, that this one failed; -1: nobody does.
 */
gpu_proven gpu_prove_here(int device_index, int tell_file);
/* In a process of its own, which only one that has not used CUDA yet can have: else
 * GPU_PROOF_NO_CARD. A card that failed once in this process fails without being asked. */
gpu_proven gpu_prove_apart(int device_index);
/* This process uses CUDA from here on; or, for tests, has never done so. */
void gpu_proof_used(bool used);

/* -- upload.c: host to device through pinned memory ----------------------------------------- */

#define UPLOAD_SLOTS 4
#define UPLOAD_SLOT_BYTES ((size_t)8 << 20)

typedef struct gpu_slot {
    void *pinned, *device;
    size_t bytes;
    cudaEvent_t came; /* of a copy by `copies` */
    cudaEvent_t done; /* of the kernel that read it */
    bool busy;
} gpu_slot;

/* Whoever packs holds the lock: the engine's thread while the model loads, the loader's
 * later. */
typedef struct gpu_upload {
    pthread_mutex_t lock;
    cudaStream_t stream;
    cudaStream_t copies; /* of adapters, so that packing holds up no copy */
    gpu_slot slots[UPLOAD_SLOTS];
    int next;
    int32_t *bad;        /* pinned: of the adapter that is being made */
    cudaEvent_t arrived; /* it has */
} gpu_upload;

typedef struct gpu_packing {
    const ol_tensor *tensor; /* a matrix */
    const gpu_matrix *to;    /* where it goes; or NULL, */
    const gpu_lora8 *lora;   /* as an adapter's A or B */
    int32_t *bad;            /* see gpu_pack */
} gpu_packing;

ol_code gpu_upload_open(ol_device *device, ol_error *err);
void gpu_upload_close(ol_device *device);
/* Copies and packs; asynchronous to what is known of the device, but the tensor's bytes have
 * been read. The caller holds the lock. */
ol_code gpu_upload_matrix(ol_device *device, const gpu_packing *job, ol_error *err);
/* Until all that was sent and packed is there; asleep. */
ol_code gpu_upload_wait(ol_device *device, ol_error *err);
/* Any bytes, as they are; at most a slot's at a time are under way. */
ol_code gpu_upload_bytes(ol_device *device, const void *from, void *to, size_t bytes,
                         ol_error *err);
/* The next slot, of at least `bytes`, with nothing of before under way; and when what uses it is in
 * `stream`. */
ol_code gpu_slot_take(ol_device *device, size_t bytes, gpu_slot **out, ol_error *err);
ol_code gpu_slot_leave(ol_device *device, gpu_slot *slot, ol_error *err);
/* As gpu_source has it; -1: what becomes floats on the way. */
int gpu_source_dtype(ol_dtype dtype);

/* -- upload_batch.c: an adapter's matrices, many in one copy and one kernel ------------------- */

typedef struct gpu_move {
    const ol_tensor *tensor;
    gpu_lora8 to; /* as gpu_arrival has it: of one adapter all alike */
} gpu_move;

/* Asynchronous, and to the tensors' bytes, too, which may be pinned ones: nobody writes or frees
 * them before the streams were waited for. Sorts the moves. The caller holds the lock. */
ol_code gpu_upload_moves(ol_device *device, gpu_move *moves, int n, int32_t *bad, ol_error *err);
/* Until nothing is under way; whatever it comes to. */
void gpu_upload_settle(ol_device *device);

/* -- handles ----------------------------------------------------------------------------------- */

struct ol_weight {
    int use;
    gpu_matrix m; /* MATRIX, EMBEDDING_AND_HEAD */
    void *data;   /* all of it */
    size_t bytes;
    int dtype;          /* EMBEDDING: of its rows, as gpu_embed has it */
    int64_t rows, cols; /* of m or of the table; VECTOR: 1 row */
};

struct ol_buffer {
    void *data; /* [max_rows][ld]: f32 where it is the residual stream, else bf16 */
    int64_t cols, ld;
    size_t bytes;
};

struct ol_kv {
    ol_kv_desc desc;
    gpu_kv_layer first;       /* layer */
    int64_t layer_stride;     /* bytes */
    size_t page_bytes, bytes; /* of a page, all layers; of all */
};

struct ol_lora {
    void *block; /* device: gpu_lora, parts, rows of parts, then matrices */
    size_t bytes;
    bool pooled; /* it lies in pages of a pool, which are not its own */
    int h_stride;
    uint64_t stamp; /* lists.c: of the step that `group` belongs to */
    int group;
};

/* -- ops.c: what a step's operations are ------------------------------------------------------- */

typedef enum gpu_op_kind {
    GPU_OP_EMBED,
    GPU_OP_NORM,
    GPU_OP_QKV,
    GPU_OP_ATTENTION,
    GPU_OP_OUT,
    GPU_OP_MLP,
    GPU_OP_LOGITS,
    GPU_OP_CHOOSE, /* logits, and a token from each row */
} gpu_op_kind;

/* Compared byte by byte with those of a graph: made by memset and assignment. */
typedef struct gpu_op {
    gpu_op_kind kind;
    float eps;
    const ol_layer *layer;
    const ol_weight *weight, *head;
    const ol_buffer *in;
    ol_buffer *out;
    const ol_kv *kv;
} gpu_op;

#define GPU_MAX_OPS 4096

/* What a step launches: real numbers, or rounded up for a graph. */
typedef struct gpu_sizes {
    int32_t n_rows, n_logit_rows;
    int32_t n_decode, n_tiles, n_splits;
    int32_t decode_most; /* rows of a sequence that n_decode counts: 1, or GPU_DECODE_ROWS */
    int32_t n_items, n_members;
} gpu_sizes;

/* -- graph.c ----------------------------------------------------------------------------------- */

#define GPU_GRAPHS 24

typedef struct gpu_graph {
    cudaGraphExec_t exec; /* NULL: free */
    gpu_sizes sizes;
    gpu_op *ops;
    int n_ops;
    uint64_t used; /* the step that ran it last */
} gpu_graph;

/* -- the device -------------------------------------------------------------------------------- */

typedef struct gpu_table {
    float *device; /* inverse frequencies */
    float *host;
    int n;
} gpu_table;

#define GPU_ROPES 8

/* The rows of a step that one adapter applies to: a run of members. */
typedef struct gpu_group {
    const ol_lora *lora;
    int first, n;
} gpu_group;

/* A step's lists: pinned and device memory of one layout: lists.c. */
typedef struct gpu_lists {
    uint8_t *pinned, *device;
    size_t bytes;
    size_t words, members; /* room for so many: of pages and picks, 4 bytes each */
    const ol_pick *picks;  /* device */
    bool edited;           /* a pick has penalties, biases or a mask */
    gpu_group *groups;     /* [room_groups] */
    int n_groups, room_groups;
    int64_t h_used; /* elements of h that this step needs */
    int n_energies;
} gpu_lists;

struct ol_device {
    ol_device_options options;
    struct cudaDeviceProp card;
    gpu_way way;            /* of prefill's products */
    char way_note[80];      /* behind the card's name */
    bool weights_under_way; /* on the upload's stream: a step has to wait for them */
    bool no_graphs;         /* recording has failed: steps are launched one by one */
    gpu_memory memory;
    cudaStream_t stream;
    gpu_upload upload;

    /* The step. */
    const ol_step *step;
    uint64_t stamp;
    int page_tokens; /* of the page pool */
    gpu_lists lists;
    gpu_rows rows;
    gpu_sizes sizes;
    double *energies; /* pinned */
    size_t energies_bytes;
    gpu_op *ops;
    int n_ops;
    gpu_graph graphs[GPU_GRAPHS];

    gpu_scratch qkv, act, normed, logits, edited, choices, linear, attention, h, shrink, energy;
    void *results; /* pinned: logits or choices */
    size_t results_bytes;
    int32_t *tickets;
    gpu_table ropes[GPU_ROPES];
    int n_ropes;
};

/* card.c: the GPU that the options name, for this thread; or why it cannot be had. */
ol_code gpu_choose_card(ol_device *device, ol_error *err);
/* Keeps what it has when that suffices; otherwise zeros anew, and graphs go. */
ol_code gpu_scratch_need(ol_device *device, gpu_scratch *scratch, size_t bytes, const char *what,
                         ol_error *err);
/* Addresses have changed, or handles gone. */
void gpu_graphs_drop(ol_device *device);
/* Of these sizes and the step's operations; or NULL. */
gpu_graph *gpu_graphs_find(ol_device *device, const gpu_sizes *sizes);
/* Takes the place of the one that was not run for the longest time. Has `exec` from here on. */
ol_code gpu_graphs_keep(ol_device *device, const gpu_sizes *sizes, cudaGraphExec_t exec,
                        ol_error *err);
/* One more operation of the step. */
ol_code gpu_note(ol_device *device, const gpu_op *op, ol_error *err);
/* Runs the step's list of operations, by a graph where it pays. */
ol_code gpu_run_ops(ol_device *device, ol_error *err);
/* Room for what the operations need, then their launches. */
ol_code gpu_ops_prepare(ol_device *device, const gpu_sizes *sizes, ol_error *err);
ol_code gpu_ops_launch(ol_device *device, const gpu_sizes *sizes, ol_error *err);
/* step->... into lists, to the device. */
ol_code gpu_lists_fill(ol_device *device, const ol_step *step, ol_error *err);
void gpu_lists_free(ol_device *device);

static inline int64_t gpu_padded(int64_t cols)
{
    return (cols + GPU_PAD - 1) / GPU_PAD * GPU_PAD;
}

/* -- the operations of the table: as device.h has them ----------------------------------------- */
ol_code gpu_weight_create(ol_device *device, const ol_weight_desc *desc, ol_weight **weight,
                          ol_error *err);
void gpu_weight_free(ol_device *device, ol_weight *weight);
ol_code gpu_lora_create(ol_device *device, const ol_lora_module *modules, int n_modules,
                        ol_lora **lora, ol_error *err);
ol_code gpu_lora_need(ol_device *device, const ol_kv *kv, const ol_lora_module *modules,
                      int n_modules, ol_lora_need *need, ol_error *err);
ol_code gpu_lora_create_in(ol_device *device, ol_kv *kv, const int32_t *runs,
                           const ol_lora_module *modules, int n_modules, ol_lora **lora,
                           ol_error *err);
void gpu_lora_free(ol_device *device, ol_lora *lora);
size_t gpu_lora_bytes(ol_device *device, const ol_lora *lora);
ol_code gpu_kv_create(ol_device *device, const ol_kv_desc *desc, ol_kv **kv, ol_error *err);
void gpu_kv_free(ol_device *device, ol_kv *kv);
size_t gpu_kv_page_bytes(ol_device *device, const ol_kv_desc *desc);
ol_code gpu_kv_copy_page(ol_device *device, ol_kv *kv, int32_t from, int32_t to, int n_tokens,
                         ol_error *err);
ol_code gpu_step_begin(ol_device *device, const ol_step *step, ol_error *err);
ol_code gpu_step_end(ol_device *device, ol_error *err);
ol_code gpu_op_embed(ol_device *device, const ol_weight *embedding, ol_buffer *x, ol_error *err);
ol_code gpu_op_rms_norm(ol_device *device, const ol_buffer *x, const ol_weight *weight, float eps,
                        ol_buffer *y, ol_error *err);
ol_code gpu_op_qkv(ol_device *device, const ol_layer *layer, const ol_buffer *y, ol_kv *kv,
                   ol_buffer *q, ol_error *err);
ol_code gpu_op_attention(ol_device *device, const ol_layer *layer, const ol_buffer *q,
                         const ol_kv *kv, ol_buffer *o, ol_error *err);
ol_code gpu_op_attention_out(ol_device *device, const ol_layer *layer, const ol_buffer *o,
                             ol_buffer *x, ol_error *err);
ol_code gpu_op_mlp(ol_device *device, const ol_layer *layer, const ol_buffer *y, ol_buffer *x,
                   ol_error *err);
ol_code gpu_op_logits(ol_device *device, const ol_buffer *x, const ol_weight *norm, float eps,
                      const ol_weight *head, const float **logits, ol_error *err);
ol_code gpu_op_choose(ol_device *device, const ol_buffer *x, const ol_weight *norm, float eps,
                      const ol_weight *head, const ol_choice **choices, ol_error *err);

#endif
