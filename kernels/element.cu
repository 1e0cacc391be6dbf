/* element.cu: rows by themselves: the embedding's, and RMS norm; and whether there are kernels at
 * all. See launch.h. */
#include "kernels/block.cuh"
#include "kernels/launch.h"
#include "kernels/packed.cuh"

#define NORM_THREADS 256

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
    return gpu_launch(embed_kernel, dim3((unsigned)n_rows), dim3(128), 0, stream, *rows, table,
                      dtype, cols, x, ldx);
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
    return gpu_launch(embed_packed_kernel, dim3((unsigned)n_rows), dim3(128), 0, stream, *rows,
                      *table, x, ldx);
}

static __global__ void rms_norm_kernel(gpu_rows rows, const float *x, int64_t ldx,
                                       const float *weight, int64_t cols, float eps, int logits,
                                       uint16_t *y, int64_t ldy)
{
    GPU_SHARED(shared);
    block_room *room = (block_room *)shared;
    int row = (int)blockIdx.x;
    const float *from;
    float sum = 0, scale;

    if (row >= (logits ? rows.counts->n_logit_rows : rows.counts->n_rows))
        return;
    from = x + (logits ? rows.logit_rows[row] : row) * ldx;
    for (int64_t i = threadIdx.x; i < cols; i += NORM_THREADS)
        sum = fmaf(from[i], from[i], sum);
    scale = 1.0f / sqrtf(block_sum(sum, room) / (float)cols + eps);
    for (int64_t i = threadIdx.x; i < cols; i += NORM_THREADS)
        y[row * ldy + i] = (uint16_t)bf16_pack(from[i] * scale * weight[i], 0);
}

extern "C" cudaError_t gpu_rms_norm(const gpu_rows *rows, const float *x, int64_t ldx,
                                    const float *weight, int64_t cols, float eps, int logits,
                                    uint16_t *y, int64_t ldy, int n_rows, cudaStream_t stream)
{
    return gpu_launch(rms_norm_kernel, dim3((unsigned)n_rows), dim3(NORM_THREADS),
                      sizeof(block_room), stream, *rows, x, ldx, weight, cols, eps, logits, y, ldy);
}

/* -- what every launch needs ------------------------------------------------------------------- */

int gpu_launches_early = 1;

extern "C" cudaError_t gpu_has_code(void)
{
    cudaFuncAttributes found;

    return cudaFuncGetAttributes(&found, (const void *)rms_norm_kernel);
}
