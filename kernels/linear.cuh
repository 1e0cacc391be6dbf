/*
 * linear.cuh: what both shapes of the matrix product share: which features a block has, and
 * from its sums to y. README.md has the arithmetic.
 *
 * A block computes `units` neighbouring units of 16 features, of one part; those of SwiGLU half
 * of part 0 and half, of the same features, of part 1. It leaves its results in memory as
 * [run][token][unit's 16 features], the adapters' share as one more run, and finish() does
 * the rest.
 */
#ifndef OL_LINEAR_CUH
#define OL_LINEAR_CUH

#include "kernels/gpu.cuh"
#include "kernels/launch.h"

#define LINEAR_MAX_SPLITS 8

struct linear_args {
    gpu_rows rows;
    gpu_linear op;
    int32_t first[3]; /* the block that has a part's first features */
    int32_t n_tiles;  /* of features, all parts */
    int32_t max_splits;
    int32_t column;  /* of y, for part 0 */
    int32_t warps;   /* of few: those that multiply */
    int32_t at_once; /* blocks of group that run at the same time */
};

/* The kernels for one kind of weights, linear_KIND.cu. */
#define TILE_UNITS 8 /* of a block of many rows */
#define TILE_FEATURES (TILE_UNITS * 16)
#define WALK_FAR_SHARED (96 * 1024 + 256 * TILE_FEATURES * 4) /* bytes, of walk_far */
#define GROUP_SHARED (WALK_FAR_SHARED + 2048)                 /* at most, of group_far */

struct linear_kernels {
    int few_rows; /* at most, of few */
    cudaError_t (*few)(const linear_args *args, int n_rows, cudaStream_t stream);
    cudaError_t (*runs)(const linear_args *args, int n_rows, cudaStream_t stream);
    cudaError_t (*walk)(const linear_args *args, int n_rows, cudaStream_t stream);
    cudaError_t (*walk_far)(const linear_args *args, int n_rows, cudaStream_t stream);
    cudaError_t (*group)(const linear_args *args, int n_rows, cudaStream_t stream);
    cudaError_t (*group_far)(const linear_args *args, int n_rows, cudaStream_t stream);
};
extern const linear_kernels linear_bf16, linear_int8, linear_int4, linear_int4m, linear_fp8;

/* -- features ---------------------------------------------------------------------------- */

/* Where a block is. */
struct linear_place {
    int part;     /* of its first unit */
    int row_tile; /* of its first unit, in its part */
    int column;   /* of y, for the part's first feature */
};

/* Blocks of a part have `units` units, or so many of each of SwiGLU's parts: filled in later. */
static __device__ __forceinline__ linear_place find_part(const linear_args &args, int block)
{
    linear_place place = {0, 0, args.column};

    if (args.op.finish != GPU_SWIGLU)
        while (place.part + 1 < args.op.n_parts && block >= args.first[place.part + 1])
            place.column += args.op.parts[place.part++].w.rows;
    return place;
}

static __device__ __forceinline__ void find_units(const linear_args &args, linear_place &place,
                                                  int block, int units)
{
    place.row_tile =
        (block - args.first[place.part]) * (args.op.finish == GPU_SWIGLU ? units / 2 : units);
}

static __device__ __forceinline__ int unit_part(const linear_args &args, const linear_place &place,
                                                int units, int unit)
{
    return args.op.finish == GPU_SWIGLU ? unit >= units / 2 : place.part;
}

static __device__ __forceinline__ int unit_row_tile(const linear_args &args,
                                                    const linear_place &place, int units, int unit)
{
    return place.row_tile +
           (args.op.finish == GPU_SWIGLU && unit >= units / 2 ? unit - units / 2 : unit);
}

static __device__ __forceinline__ int row_tiles_of(const gpu_matrix &w)
{
    return (w.rows + 15) / 16;
}

/* 64s of columns: of a matrix, and of one run. */
static __host__ __device__ __forceinline__ int depth_of(const gpu_matrix &w)
{
    return (w.cols + 63) / 64;
}

static __device__ __forceinline__ int run_depth_of(const gpu_matrix &w)
{
    return (depth_of(w) + w.splits - 1) / w.splits;
}

static __device__ __forceinline__ int real_rows(const linear_args &args)
{
    return args.op.logits ? args.rows.counts->n_logit_rows : args.rows.counts->n_rows;
}

/* Whether any row of the step has an adapter that may be on this layer. */
static __device__ __forceinline__ bool adapters_apply(const linear_args &args)
{
    return args.op.layer >= 0 && args.rows.counts->n_members > 0;
}

/* -- from sums to y ------------------------------------------------------------------------ */

/* Sums in memory. mask spreads the tokens over the banks of shared memory: 24, or 0. */
struct linear_sums {
    const float *data;
    int ld, mask;
    int64_t run_stride;
    int n_runs;
    const float *delta; /* the adapters' share, laid out as a run, or NULL */
    bool raw;           /* scales of rows and the bias are still to come */
};

static __device__ __forceinline__ int sum_index(int token, int feature, int ld, int mask)
{
    return token * ld + (feature ^ ((token << 2) & mask));
}

static __device__ __forceinline__ void add4(float4 &v, const float4 &w)
{
    v.x += w.x;
    v.y += w.y;
    v.z += w.z;
    v.w += w.w;
}

/* The sum of all runs, scaled if rows have scales, plus the bias: a single operation where there
 * are both, as a compiler would join them in one kernel and not in another. */
static __device__ __forceinline__ float scaled_sum(const gpu_linear_part &part, float sum,
                                                   int feature)
{
    if (part.w.kind == GPU_FP8)
        return fmaf(sum, ((const float *)part.w.scales)[feature],
                    part.bias ? part.bias[feature] : 0.0f);
    return part.bias ? sum + part.bias[feature] : sum;
}

/* Four features of a token: `at` in the block, `feature` in its part. */
static __device__ __forceinline__ float4 whole_sum(const linear_sums &sums,
                                                   const gpu_linear_part &part, int token, int at,
                                                   int feature)
{
    int i = sum_index(token, at, sums.ld, sums.mask);
    float4 v = *(const float4 *)(sums.data + i);

    for (int run = 1; run < sums.n_runs; run++)
        add4(v, *(const float4 *)(sums.data + run * sums.run_stride + i));
    if (sums.raw && (part.bias || part.w.kind == GPU_FP8)) {
        int last = part.w.rows - 1;

        v = make_float4(scaled_sum(part, v.x, feature),
                        scaled_sum(part, v.y, min(feature + 1, last)),
                        scaled_sum(part, v.z, min(feature + 2, last)),
                        scaled_sum(part, v.w, min(feature + 3, last)));
    }
    if (sums.delta)
        add4(v, *(const float4 *)(sums.delta + i));
    return v;
}

static __device__ __forceinline__ float silu_times(float gate, float up)
{
    return gate / (1.0f + exp2_fast(gate * -1.4426950408889634f)) * up;
}

static __device__ __forceinline__ void store4(const gpu_linear &op, int64_t at, const float4 &v,
                                              int n)
{
    float each[4] = {v.x, v.y, v.z, v.w};
    bool whole = n >= 4 && at % 4 == 0;

    if (op.finish == GPU_STORE_F32 || op.finish == GPU_ADD_F32) {
        float *y = (float *)op.y + at;

        if (whole && op.finish == GPU_STORE_F32)
            *(float4 *)y = v;
        else if (whole) {
            float4 was = *(const float4 *)y;

            add4(was, v);
            *(float4 *)y = was;
        } else
            for (int i = 0; i < 4 && i < n; i++)
                y[i] = op.finish == GPU_ADD_F32 ? y[i] + each[i] : each[i];
    } else {
        uint16_t *y = (uint16_t *)op.y + at;

        if (whole)
            *(uint2 *)y = make_uint2(bf16_pack(v.x, v.y), bf16_pack(v.z, v.w));
        else
            for (int i = 0; i < 4 && i < n; i++)
                y[i] = (uint16_t)bf16_pack(each[i], 0);
    }
}

/* Features that a block of so many units gives y. */
static __device__ __forceinline__ int width_of(const linear_args &args, int units)
{
    return units * (args.op.finish == GPU_SWIGLU ? 8 : 16);
}

/* The i-th four features of the block's tokens, the first of which is row first_row. */
static __device__ __forceinline__ void finish4(const linear_args &args, const linear_place &place,
                                               int width, const linear_sums &sums, int first_row,
                                               int i)
{
    const gpu_linear &op = args.op;
    const gpu_linear_part &part = op.parts[place.part];
    int token = i / (width / 4), at = i % (width / 4) * 4, feature = place.row_tile * 16 + at;
    float4 v;

    if (feature >= part.w.rows)
        return;
    v = whole_sum(sums, part, token, at, feature);
    if (op.finish == GPU_SWIGLU) {
        float4 up = whole_sum(sums, op.parts[1], token, at + width, feature);

        v = make_float4(silu_times(v.x, up.x), silu_times(v.y, up.y), silu_times(v.z, up.z),
                        silu_times(v.w, up.w));
    }
    store4(op, (int64_t)(first_row + token) * op.ldy + place.column + feature, v,
           part.w.rows - feature);
}

/* The block's tokens 0 .. n_tokens - 1 are rows from first_row on. */
static __device__ __forceinline__ void finish(const linear_args &args, const linear_place &place,
                                              int units, const linear_sums &sums, int first_row,
                                              int n_tokens)
{
    int width = width_of(args, units);

    for (int i = (int)threadIdx.x; i < n_tokens * (width / 4); i += (int)blockDim.x)
        finish4(args, place, width, sums, first_row, i);
}

#endif
