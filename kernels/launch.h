/*
 * launch.h: the kernels of the CUDA device as functions in C: the only header that both the
 * host's files (.c) and the kernels' files (.cu) include.
 *
 * All pointers are to device memory unless said otherwise. Activations are bf16, but for the
 * residual stream, which is f32. A buffer's columns beyond its width are zero up to a multiple
 * of GPU_PAD, and stay so.
 *
 * A launch is for `n_rows` rows or items, which sizes its grid; how many of them are real is in
 * gpu_counts, in device memory. So a launch that was captured into a graph serves every step of
 * at most that size. A kernel leaves alone what belongs to rows beyond the real ones.
 *
 * The same bits (P6): what a row comes to does not depend on which kernel of a family computes
 * it, on the other rows, or on n_rows. README.md says which sums are cut where.
 *
 * Every function returns what launching gave; errors of running show later.
 */
#ifndef OL_GPU_LAUNCH_H
#define OL_GPU_LAUNCH_H

#include "base/choice.h"

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GPU_PAD 64            /* columns of a buffer come in these */
#define GPU_KV_BLOCK 64       /* tokens whose scores share a maximum: README.md, attention */
#define GPU_KV_SPLIT 512      /* tokens of one partial result */
#define GPU_SHRINK_SPLIT 1024 /* columns of one partial sum of A x */
#define GPU_MODULES 7
#define GPU_TILE_ROWS 128   /* of a gpu_tile at most */
#define GPU_DECODE_ROWS 4   /* of a sequence at most that decode_rows have */
#define GPU_ITEM_MEMBERS 32 /* of a gpu_item at most */
#define GPU_TICKETS 16384   /* of those who come last: kernels of one stream may share them */

/* Whether kernels may start before the one before has ended (gpu_launch_early): 1, unless somebody
 * has found that it does not work. Of all devices of a process. */
extern int gpu_launches_early;
/* Whether there is code for the chosen device. */
cudaError_t gpu_has_code(void);
/* CUDA brings a kernel to the device when it is first used, and may wait for all work there to do
 * so: those that the loader's thread uses are brought before there are steps. */
cudaError_t gpu_pack_load_kernels(void);
cudaError_t gpu_lora_load_kernels(void);
cudaError_t gpu_gram_load_kernels(void);

/* -- a step ------------------------------------------------------------------------------- */

typedef struct gpu_counts {
    int32_t n_rows, n_logit_rows;
    int32_t n_decode; /* rows of sequences that have few: attention reads decode_rows */
    int32_t n_tiles;  /* of the other sequences: attention reads tiles */
    int32_t n_items;  /* of shrinking */
    int32_t n_members;
} gpu_counts;

/* Up to GPU_TILE_ROWS neighbouring rows of one sequence, the more the better: results do not depend
 * on how a sequence's rows are cut into tiles. */
typedef struct gpu_tile {
    int32_t first_row, n_rows;
} gpu_tile;

/* One adapted module of an adapter. a: {rank, in}, b: {out, rank}, both packed as
 * GPU_BF16 matrices (README.md, weights), their sides padded with zeros; the columns of b to
 * 16 alone: its tile (i, k) is number i * ceil(rank / 16) + k. Or, where gpu_rows.lora8 says so, in
 * eight bits (README.md, adapters). */
typedef struct gpu_lora_part {
    const void *a, *b;
    const float *gram;   /* B'B, [rank][rank], of the numbers that b has */
    const float *scales; /* eight bits: of each rank, A's times B's */
    int32_t rank;        /* 0: not adapted */
    int32_t h;           /* where its part of a member's h starts: a multiple of 16 */
    float scale;
} gpu_lora_part;

/* An adapter: parts[layer * GPU_MODULES + module]. */
typedef struct gpu_lora {
    const gpu_lora_part *parts;
    int32_t n_layers;
    int32_t h_stride; /* of a member's h, of the widest input: a multiple of 16 */
} gpu_lora;

/* A row as one of those that an adapter applies to. Members of one adapter and entry are
 * neighbours. */
typedef struct gpu_member {
    const gpu_lora *lora;
    int32_t row;
    int32_t entry;  /* place of the adapter in the row's list */
    int32_t h;      /* where its h starts, in elements of gpu_rows.h and, a split, of .partial */
    int32_t energy; /* index into gpu_rows.energy, or -1 */
    float weight;
} gpu_member;

/* Members first .. first + n - 1 have the same adapter: what shrinking reads its matrices for
 * once. At most GPU_ITEM_MEMBERS. */
typedef struct gpu_item {
    int32_t first, n;
} gpu_item;

/* The addresses are the same in all steps, but for growth (then graphs are made anew). */
typedef struct gpu_rows {
    const gpu_counts *counts;
    const int32_t *tokens;     /* [max_rows] */
    const int32_t *pos;        /* [max_rows] */
    const int32_t *page_start; /* [max_rows]: where the table of the row's sequence starts */
    const int32_t *pages;
    const int32_t *logit_rows;  /* [max_logit_rows] */
    const int32_t *decode_rows; /* [max_rows] */
    const gpu_tile *tiles;
    /* LoRA. member_start[r] .. member_start[r + 1] - 1 of row_members are row r's members, in
     * the order of its list. */
    const gpu_member *members;
    const gpu_item *items;
    const int32_t *member_start; /* [max_rows + 1] */
    const int32_t *row_members;
    uint16_t *h;    /* bf16: weight * scale * A x of the input that is being computed */
    float *partial; /* of A x: [splits][h_size] */
    int64_t h_size; /* elements of h at most */
    double *energy;
    int32_t lora8; /* adapters' matrices have eight bits a number */
} gpu_rows;

/* -- weights --------------------------------------------------------------------------------- */

typedef enum gpu_kind {
    GPU_BF16,
    GPU_INT8,  /* groups of 32 columns with a scale: w = q * scale */
    GPU_INT4,  /* the same, q of -8 .. 7 */
    GPU_INT4M, /* with an offset beside the scale: w = q * scale + offset */
    GPU_FP8,   /* e4m3, rows with a scale: a product is scaled when it is summed */
    GPU_KINDS
} gpu_kind;

/* README.md, weights, has the layout. rows and cols are the matrix's own. */
typedef struct gpu_matrix {
    int32_t kind;
    int32_t rows, cols;
    int32_t splits; /* partial sums of a row's product: depends on the matrix alone */
    const void *data;
    const void *scales; /* NULL for BF16 */
} gpu_matrix;

/* -- pack.cu: weights into the device's layout ----------------------------------------------------
 * As they came from the host: README.md has both layouts. */

/* Rows of a matrix as they were uploaded: dtype 0 f32, 1 f16, 2 bf16, 3 Q8_0, 4 Q4_0, 5 Q4_K (these
 * keep their numbers as INT8, INT4 and INT4M). */
typedef struct gpu_source {
    const void *data; /* [rows][cols] */
    int32_t dtype, rows, cols;
} gpu_source;

/* Packs rows first_row .. first_row + source.rows - 1 of `to` (both but for the last rows a
 * multiple of 16) and, in the last columns' and rows' tiles, zeros. INT8, INT4 and INT4M are
 * quantised by groups, FP8 by rows. *bad becomes 1 when a number is not finite as bf16; bad may be
 * NULL. */
cudaError_t gpu_pack(const gpu_matrix *to, int first_row, const gpu_source *source, int32_t *bad,
                     cudaStream_t stream);
/* Columns of B matrices of adapters are padded to 16, not 64: col_tiles of them. */
cudaError_t gpu_pack_columns(uint16_t *to, int col_tiles, int first_row, const gpu_source *source,
                             int32_t *bad, cudaStream_t stream);

/* -- pack_lora.cu: adapters -----------------------------------------------------------------------
 * And gram.cu: what is made of an adapter when all of it has come. */

#define GPU_LORA8_MOST 127.0f /* the largest magnitude of eight bits */

/* A or B in eight bits. Each rank, a row of A and a column of B, has a scale: the largest magnitude
 * / 127. */
typedef struct gpu_lora8 {
    uint8_t *data;
    int32_t col_tiles;
    int32_t by_columns; /* B */
    uint32_t *most;     /* of each rank, up to 16s: the largest magnitude, a float's bits */
} gpu_lora8;

/* An adapter's A or B as it came, all of it, and where it goes. */
typedef struct gpu_arrival {
    gpu_source source;
    gpu_lora8 to;              /* with `most` NULL in bf16: col_tiles tiles in 16 rows */
    int32_t first, first_most; /* blocks of packing and of measuring that are others' */
} gpu_arrival;

/* Those that came together, all in eight bits or all in bf16. */
typedef struct gpu_arrivals {
    const gpu_arrival *table;
    int32_t n, blocks, blocks_most;
} gpu_arrivals;

/* Counts blocks: in `table`, which is the host's, and in `all`, but for all->table. */
void gpu_arrivals_count(gpu_arrival *table, int n, gpu_arrivals *all);
/* What gpu_pack, or gpu_lora8_most and gpu_lora8_pack, would do one by one. */
cudaError_t gpu_arrivals_pack(const gpu_arrivals *all, int32_t *bad, cudaStream_t stream);

/* Notes the largest magnitudes of rows first_row .. in most, which is zero before the first; and
 * *bad, as gpu_pack does. */
cudaError_t gpu_lora8_most(const gpu_lora8 *to, int first_row, const gpu_source *source,
                           int32_t *bad, cudaStream_t stream);
/* Packs them, when those of all rows are known. first_row as of gpu_pack. */
cudaError_t gpu_lora8_pack(const gpu_lora8 *to, int first_row, const gpu_source *source,
                           cudaStream_t stream);
/* When all are packed: the scales of every part, from [2][ranks up to 16s] largest magnitudes, A's
 * and B's, that are there. */
cudaError_t gpu_lora8_scales(const gpu_lora_part *parts, int n_parts, cudaStream_t stream);
/* gram.cu: gram = B'B of every adapted part; rows[i]: of part i's B. lora8: as gpu_rows has it. */
cudaError_t gpu_gram(const gpu_lora_part *parts, const int32_t *rows, int n_parts, int max_rank,
                     int lora8, cudaStream_t stream);
/* -- element.cu ------------------------------------------------------------------------------- */

/* x[r] = embedding[tokens[r]]; rows of the table as given: dtype 0 f32, 1 f16, 2 bf16. */
cudaError_t gpu_embed(const gpu_rows *rows, const void *table, int dtype, int64_t cols, float *x,
                      int64_t ldx, int n_rows, cudaStream_t stream);

/* The same from a packed matrix that is also the head: {tokens, cols}. */
cudaError_t gpu_embed_packed(const gpu_rows *rows, const gpu_matrix *table, float *x, int64_t ldx,
                             int n_rows, cudaStream_t stream);

/* y[r] = x[from(r)] / rms(x[from(r)]) * weight, from(r) = r, or logit_rows[r] when `logits`. */
cudaError_t gpu_rms_norm(const gpu_rows *rows, const float *x, int64_t ldx, const float *weight,
                         int64_t cols, float eps, int logits, uint16_t *y, int64_t ldy, int n_rows,
                         cudaStream_t stream);

/* -- rope.cu --------------------------------------------------------------------------------------
 * And the pages that it fills. */

/* The page pool of a layer. Head h of page p is at p * page_stride + h * gpu_kv_head_bytes: the
 * keys of its slots, a row each, then the values, as many; of FP8 then an exponent for each row in
 * the same order (README.md, pages). A row has dim_stride numbers, head_dim rounded up to 16; those
 * beyond head_dim are zero. Slots that nobody wrote may hold anything. */
typedef struct gpu_kv_layer {
    uint8_t *data;
    int32_t n_kv_heads, head_dim, dim_stride, page_tokens;
    int64_t page_stride; /* bytes, a multiple of 32 */
    int32_t fp8;         /* else bf16 */
} gpu_kv_layer;

#ifdef __CUDACC__
#define GPU_ANYWHERE __host__ __device__
#else
#define GPU_ANYWHERE
#endif

static inline GPU_ANYWHERE int gpu_kv_row_bytes(const gpu_kv_layer *kv)
{
    return kv->fp8 ? kv->dim_stride : kv->dim_stride * 2;
}

static inline GPU_ANYWHERE int64_t gpu_kv_head_bytes(const gpu_kv_layer *kv)
{
    return (int64_t)2 * kv->page_tokens * (gpu_kv_row_bytes(kv) + (kv->fp8 ? 1 : 0));
}

/* pack.cu: copies the first n slots of a page, all heads and layers; kv is the first layer, the
 * next one layer_stride bytes further. */
cudaError_t gpu_kv_copy(const gpu_kv_layer *kv, int64_t layer_stride, int n_layers, int from,
                        int to, int n, cudaStream_t stream);

typedef struct gpu_rope {
    const uint16_t *qkv; /* [n_rows][ld]: q, then k, then v of all heads, biases added */
    int64_t ld;
    uint16_t *q; /* out: [n_rows][ldq], head h at h * head_dim */
    int64_t ldq;
    gpu_kv_layer kv;
    const float *q_norm, *k_norm; /* {head_dim} or NULL */
    const float *inv_freq;        /* rotary_dims / 2 */
    int32_t n_heads, rotary_dims, interleaved;
    float norm_eps, rope_factor;
} gpu_rope;

/* Norms and turns q and k; k and v into their pages. */
cudaError_t gpu_rope_run(const gpu_rows *rows, const gpu_rope *op, int n_rows, cudaStream_t stream);

/* -- attention_*.cu -------------------------------------------------------------------------------
 * Rows that decode, and tiles of others, of the same step. */

typedef struct gpu_attention {
    const uint16_t *q; /* [n_rows][ldq] */
    int64_t ldq;
    uint16_t *o; /* [n_rows][ldo], head h at h * head_dim; other columns are left alone */
    int64_t ldo;
    gpu_kv_layer kv;
    int32_t n_heads;
    int32_t window; /* 0: all */
    float scale;
    /* of decoding: [n_decode][n_heads][max_splits] results of dim_stride + 2 floats */
    float *partial;
    int32_t decode_most; /* rows of one sequence in decode_rows, neighbours there and in the step */
} gpu_attention;

/* Floats of .partial for n_decode rows and n_splits. */
size_t gpu_attention_partial(const gpu_attention *op, int n_decode, int n_splits);
/* Rows of decode_rows; n_splits: enough for the longest, (pos / GPU_KV_SPLIT) + 1. */
cudaError_t gpu_attention_decode(const gpu_rows *rows, const gpu_attention *op, int n_decode,
                                 int n_splits, cudaStream_t stream);
/* Rows of tiles. */
cudaError_t gpu_attention_prefill(const gpu_rows *rows, const gpu_attention *op, int n_tiles,
                                  cudaStream_t stream);

/* -- shrink.cu ------------------------------------------------------------------------------------
 * A x of all adapters of a step: what B is multiplied with in linear.cu. */

/* For each member: h = bf16(weight * scale * A x[row]) of the modules first .. last of a layer,
 * zero beyond their ranks up to 16s; and energy += |weight * scale * B A x|^2 where asked for, from
 * f32. Of eight bits h has the ranks' scales, too, B's as well: B's numbers need none then. */
typedef struct gpu_shrink {
    const uint16_t *x;
    int64_t ldx;
    int64_t cols;
    int32_t layer, first_module, last_module;
    int32_t *tickets; /* GPU_TICKETS of them, zero before and after */
} gpu_shrink;

cudaError_t gpu_shrink_run(const gpu_rows *rows, const gpu_shrink *op, int n_items, int n_members,
                           cudaStream_t stream);

/* -- linear.cu ------------------------------------------------------------------------------------
 * All products with weights, the adapters' B h in them. */

typedef enum gpu_finish {
    GPU_STORE_BF16, /* y[r][..] = , parts side by side */
    GPU_STORE_F32,  /* the same, f32 */
    GPU_ADD_F32,    /* y += */
    GPU_SWIGLU,     /* y[r][i] = silu(part 0) * part 1, bf16 */
} gpu_finish;

/* Which instructions sum prefill-sized products: mma.sync, or a group of warps together (wgmma).
 * Results are the same bits, or else the device uses only the first (proof.c). */
typedef enum gpu_way {
    GPU_WAY_WARP,
    GPU_WAY_GROUP,
    GPU_WAY_GROUP_128, /* for tests, and proof.c: always, by a few blocks of so many tokens */
    GPU_WAY_GROUP_256,
} gpu_way;

typedef struct gpu_linear_part {
    gpu_matrix w;
    const float *bias; /* or NULL */
    int32_t module;
} gpu_linear_part;

typedef struct gpu_linear {
    gpu_linear_part parts[3];
    int32_t n_parts;
    int32_t layer;  /* of the adapters; -1: none apply */
    int32_t logits; /* the real rows are counts->n_logit_rows, not n_rows */
    gpu_finish finish;
    gpu_way way;       /* but for GPU_WAY_WARP only where gpu_linear_has_groups() */
    const uint16_t *x; /* [n_rows][ldx] */
    int64_t ldx;
    void *y;
    int64_t ldy;
    float *partial;   /* gpu_linear_partial() floats */
    int32_t *tickets; /* GPU_TICKETS of them, zero before and after */
} gpu_linear;

/* splits of a matrix of that shape: a function of the shape and kind alone. */
int gpu_linear_splits(int rows, int cols);
size_t gpu_linear_partial(const gpu_linear *op, int n_rows);
/* Whether a device has what products of groups need; it need not be chosen. */
int gpu_linear_has_groups(int device);
/* y = W x (+ bias) + sum over the row's members of B h, in this order. */
cudaError_t gpu_linear_run(const gpu_rows *rows, const gpu_linear *op, int n_rows,
                           cudaStream_t stream);

/* -- sample.cu ------------------------------------------------------------------------------------
 * The last kernel of a step, where tokens are chosen on the device. */

typedef struct gpu_sample {
    const float *logits; /* [n_rows][ld], ld a multiple of GPU_PAD */
    float *edited;       /* the same size: of rows with penalties, biases or a mask */
    int64_t ld;
    int32_t vocab;
    const ol_pick *picks; /* [n_rows]; what they point to is in device memory, too */
    ol_choice *choices;   /* [n_rows] */
} gpu_sample;

/* Chooses a token from each row of logits: base/choice.h. n_rows: of logits;
 * counts->n_logit_rows of them are real. */
cudaError_t gpu_sample_run(const gpu_rows *rows, const gpu_sample *op, int n_rows,
                           cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
