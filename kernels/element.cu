/* element.cu: rows by themselves: the embedding's, and RMS norm. See launch.h. */
#include "kernels/gpu.cuh"
#include "kernels/launch.h"

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

/* Element (row, col) of a packed matrix: README.md, weights. */
static __device__ float packed_value(const gpu_matrix &m, int row, int col)
{
    int lane = row % 8 * 4 + col % 8 / 2, j = col % 2 + 2 * (row % 16 / 8) + 4 * (col % 16 / 8);
    int64_t strip = row / 16, tiles = (m.cols + 63) / 64 * 4, tile = strip * tiles + col / 16;
    int64_t group = (strip * (tiles / 2) + col / 32) * 16 + row % 16;

    if (m.kind == GPU_BF16)
        return bf16_value(((const uint16_t *)m.data)[(tile * WARP + lane) * 8 + j]);
    if (m.kind == GPU_INT8) {
        int q = ((const int8_t *)m.data)[(tile / 2 * WARP + lane) * 16 + tile % 2 * 8 + j];

        return (float)q * f16_value(((const uint16_t *)m.scales)[group]);
    }
    uint32_t word = ((const uint32_t *)m.data)[(tile / 4 * WARP + lane) * 4 + tile % 4];
    int q = (int)(word >> (4 * (j / 2 + 4 * (j % 2))) & 15) - 8;

    return (float)q * bf16_value(((const uint16_t *)m.scales)[group]);
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

/* The sum over the block's threads, the same for all; in an order that the number of threads
 * alone decides. */
static __device__ float block_sum(float v, float *shared)
{
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    float sum = 0;

    v = warp_sum(v);
    if (lane == 0)
        shared[warp] = v;
    __syncthreads();
    for (int i = 0; i < NORM_THREADS / WARP; i++)
        sum += shared[i];
    return sum;
}

static __global__ void rms_norm_kernel(gpu_rows rows, const float *x, int64_t ldx,
                                       const float *weight, int64_t cols, float eps, int logits,
                                       uint16_t *y, int64_t ldy)
{
    GPU_SHARED(shared);
    int row = (int)blockIdx.x;
    const float *from;
    float sum = 0, scale;

    if (row >= (logits ? rows.counts->n_logit_rows : rows.counts->n_rows))
        return;
    from = x + (logits ? rows.logit_rows[row] : row) * ldx;
    for (int64_t i = threadIdx.x; i < cols; i += NORM_THREADS)
        sum = fmaf(from[i], from[i], sum);
    scale = 1.0f / sqrtf(block_sum(sum, (float *)shared) / (float)cols + eps);
    for (int64_t i = threadIdx.x; i < cols; i += NORM_THREADS)
        y[row * ldy + i] = (uint16_t)bf16_pack(from[i] * scale * weight[i], 0);
}

extern "C" cudaError_t gpu_rms_norm(const gpu_rows *rows, const float *x, int64_t ldx,
                                    const float *weight, int64_t cols, float eps, int logits,
                                    uint16_t *y, int64_t ldy, int n_rows, cudaStream_t stream)
{
    return gpu_launch(rms_norm_kernel, dim3((unsigned)n_rows), dim3(NORM_THREADS),
                      NORM_THREADS / WARP * sizeof(float), stream, *rows, x, ldx, weight, cols, eps,
                      logits, y, ldy);
}
