/* element.cu: rows by themselves: the embedding's, and RMS norm; and whether there are kernels at
 * all. See launch.h. */
#include "kernels/block.cuh"
#include "kernels/launch.h"
#include "kernels/packed.cuh"

#define NORM_THREADS 256
#define EMBED_THREADS 512

static __device__ float table_value(const void *table, int dtype, int64_t i)
{
    if (dtype == 0)
        return ((const float *)table)[i];
    return dtype == 1 ? f16_value(((const uint16_t *)table)[i])
                      : bf16_value(((const uint16_t *)table)[i]);
}

static __global__ void embed_kernel(gpu_rows rows, const void *table, int dtype, int64_t cols,
                                    float *x, int64_t ldx)
{
    int row = (int)blockIdx.x;

    if (row >= rows.counts->n_rows)
        return;
    for (int64_t i = threadIdx.x; i < cols; i += blockDim.x)
        x[row * ldx + i] = table_value(table, dtype, rows.tokens[row] * cols + i);
}

extern "C" cudaError_t gpu_embed(const gpu_rows *rows, const void *table, int dtype, int64_t cols,
                                 float *x, int64_t ldx, int n_rows, cudaStream_t stream)
{
    return gpu_launch(embed_kernel, dim3((unsigned)n_rows), dim3(EMBED_THREADS), 0, stream, *rows,
                      table, dtype, cols, x, ldx);
}

static __global__ void embed_packed_kernel(gpu_rows rows, gpu_matrix table, float *x, int64_t ldx)
{
    int row = (int)blockIdx.x;

    if (row >= rows.counts->n_rows)
        return;
    for (int i = (int)threadIdx.x; i < table.cols; i += (int)blockDim.x)
        x[row * ldx + i] = packed_value(table, rows.tokens[row], i);
}

extern "C" cudaError_t gpu_embed_packed(const gpu_rows *rows, const gpu_matrix *table, float *x,
                                        int64_t ldx, int n_rows, cudaStream_t stream)
{
    return gpu_launch(embed_packed_kernel, dim3((unsigned)n_rows), dim3(EMBED_THREADS), 0, stream,
                      *rows, *table, x, ldx);
}

/* -- RMS norm -------------------------------------------------------------------------------- */

/* Fours of columns that a thread has at once: of a row of up to 8192, all of its share. */
#define NORM_FOURS 8
#define NORM_PASS (NORM_THREADS * NORM_FOURS)

static __device__ __forceinline__ float4 four_at(const float *from, int i)
{
    uint4 v = load_once_early(from + 4 * (int64_t)i);

    return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z),
                       __uint_as_float(v.w));
}

/* The thread's fours of a pass; zeros where the row has none. */
static __device__ __forceinline__ void fetch_fours(float4 (&to)[NORM_FOURS], const float *from,
                                                   int first, int n)
{
#pragma unroll
    for (int k = 0; k < NORM_FOURS; k++) {
        int i = first + k * NORM_THREADS + (int)threadIdx.x;

        to[k] = i < n ? four_at(from, i) : make_float4(0, 0, 0, 0);
    }
}

static __device__ __forceinline__ float add_squares(float sum, const float4 (&x)[NORM_FOURS])
{
#pragma unroll
    for (int k = 0; k < NORM_FOURS; k++)
        sum = fmaf(x[k].x, x[k].x,
                   fmaf(x[k].y, x[k].y, fmaf(x[k].z, x[k].z, fmaf(x[k].w, x[k].w, sum))));
    return sum;
}

static __device__ __forceinline__ void store_fours(uint16_t *to, const float4 (&x)[NORM_FOURS],
                                                   const float4 (&weight)[NORM_FOURS], float scale,
                                                   int first, int n)
{
#pragma unroll
    for (int k = 0; k < NORM_FOURS; k++) {
        int i = first + k * NORM_THREADS + (int)threadIdx.x;

        if (i < n)
            *(uint2 *)(to + 4 * (int64_t)i) =
                make_uint2(bf16_pack(x[k].x * scale * weight[k].x, x[k].y * scale * weight[k].y),
                           bf16_pack(x[k].z * scale * weight[k].z, x[k].w * scale * weight[k].w));
    }
}

/* A block has a row, `cols` of it in fours and what is left. Decoding has few blocks, and nothing
 * else runs meanwhile: what a thread reads is on its way at once, the weights' before the row is
 * there. */
static __global__ void __launch_bounds__(NORM_THREADS)
    rms_norm_kernel(gpu_rows rows, const float *x, int64_t ldx, const float *weight, int64_t cols,
                    float eps, int logits, uint16_t *y, int64_t ldy)
{
    GPU_SHARED(shared);
    int row = (int)blockIdx.x, n = (int)(cols / 4), rest = 4 * n + (int)threadIdx.x;
    float4 values[NORM_FOURS], weights[NORM_FOURS];
    const float *from = x;
    float sum = 0, last = 0, scale;
    /* the step's lists are older than the kernel before */
    bool real = row < (logits ? rows.counts->n_logit_rows : rows.counts->n_rows);

    if (real)
        from += (logits ? rows.logit_rows[row] : row) * ldx;
    fetch_fours(weights, weight, 0, n);
    wait_for_previous();
    if (!real)
        return;
    y += row * ldy;
    for (int first = NORM_PASS; first < n; first += NORM_PASS) {
        fetch_fours(values, from, first, n);
        sum = add_squares(sum, values);
    }
    fetch_fours(values, from, 0, n);
    if (rest < cols)
        last = from[rest];
    sum = fmaf(last, last, add_squares(sum, values));
    scale = 1.0f / sqrtf(block_sum(sum, (block_room *)shared) / (float)cols + eps);
    store_fours(y, values, weights, scale, 0, n);
    if (rest < cols)
        y[rest] = (uint16_t)bf16_pack(last * scale * weight[rest], 0);
    for (int first = NORM_PASS; first < n; first += NORM_PASS) {
        fetch_fours(values, from, first, n);
        fetch_fours(weights, weight, first, n);
        store_fours(y, values, weights, scale, first, n);
    }
}

extern "C" cudaError_t gpu_rms_norm(const gpu_rows *rows, const float *x, int64_t ldx,
                                    const float *weight, int64_t cols, float eps, int logits,
                                    uint16_t *y, int64_t ldy, int n_rows, cudaStream_t stream)
{
    if (ldx % 4 || ldy % 4)
        return cudaErrorInvalidValue;
    return gpu_launch_early(rms_norm_kernel, dim3((unsigned)n_rows), dim3(NORM_THREADS),
                            sizeof(block_room), stream, *rows, x, ldx, weight, cols, eps, logits, y,
                            ldy);
}

/* -- what every launch needs ------------------------------------------------------------------- */

int gpu_launches_early = 1;

extern "C" cudaError_t gpu_has_code(void)
{
    cudaFuncAttributes found;

    return cudaFuncGetAttributes(&found, (const void *)rms_norm_kernel);
}
