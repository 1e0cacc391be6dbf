/* gram.cu: B'B of an adapter's parts, of the numbers that were packed: what the energy of B h is
 * made of. It is made once, when the adapter has come, and whoever waits for the adapter waits for
 * it: a sum has up to 14336 rows, one after the other. See launch.h. */
#include "kernels/gpu.cuh"
#include "kernels/launch.h"
#include "kernels/packed.cuh"

#define GRAM_THREADS 128 /* 16 rows of 8 pairs of sums */
#define GRAM_STRIPS 8    /* of a stage */

/* Rows r and r + 8, r below 8, columns c and c + 1, c even. */
static __device__ uint2 gram_piece(const uint8_t *tile, int r, int c)
{
    return *(const uint2 *)(tile + packed_lane(r, c) * 16 + c / 8 * 8);
}

/* Of 16 rows: columns j and j + 1 with i. Each sum goes on in the order of rows. */
static __device__ void add_gram(const uint8_t *tile_i, const uint8_t *tile_j, int i, int j,
                                float (&sum)[2])
{
    uint2 a[8], b[8];

#pragma unroll
    for (int r = 0; r < 8; r++) {
        a[r] = gram_piece(tile_i, r, i / 2 * 2);
        b[r] = gram_piece(tile_j, r, j);
    }
#pragma unroll
    for (int row = 0; row < 16; row++) {
        uint32_t left = row < 8 ? a[row % 8].x : a[row % 8].y;
        uint32_t right = row < 8 ? b[row % 8].x : b[row % 8].y;
        float v = i % 2 ? bf16_high(left) : bf16_low(left);

        sum[0] = fmaf(v, bf16_low(right), sum[0]);
        sum[1] = fmaf(v, bf16_high(right), sum[1]);
    }
}

/* Byte k of lora8_place's order. */
static __device__ int gram_byte(uint32_t word, int k)
{
    return (int8_t)(word >> (8 * k));
}

static __device__ uint32_t gram_piece8(const uint8_t *tile, int r, int c)
{
    return *(const uint32_t *)(tile + packed_lane(r, c) * 8 + c / 8 * 4);
}

/* Exact: of as many rows as a stage has. */
static __device__ void add_gram(const uint8_t *tile_i, const uint8_t *tile_j, int i, int j,
                                int64_t (&sum)[2])
{
    int part[2] = {0, 0};

#pragma unroll
    for (int r = 0; r < 8; r++) {
        uint32_t left = gram_piece8(tile_i, r, i / 2 * 2) >> (i % 2 * 16);
        uint32_t right = gram_piece8(tile_j, r, j);

        for (int half = 0; half < 2; half++) {
            part[0] += gram_byte(left, half) * gram_byte(right, half);
            part[1] += gram_byte(left, half) * gram_byte(right, half + 2);
        }
    }
    sum[0] += part[0];
    sum[1] += part[1];
}

/* Bytes. */
template <int TILE> constexpr int gram_stage = 2 * GRAM_STRIPS *TILE;

/* Tiles of the block's columns i, and behind them of j; beyond the last strip zeros. */
template <int TILE>
static __device__ void fetch_gram(uint8_t *to, const gpu_lora_part &part, int first, int strips)
{
    constexpr int pieces = GRAM_STRIPS * TILE / 16, each = TILE / 16;
    int col_tiles = (part.rank + 15) / 16;

    for (int k = (int)threadIdx.x; k < 2 * pieces; k += GRAM_THREADS) {
        int side = k / pieces, piece = k % pieces, strip = first + piece / each;
        int64_t tile =
            (int64_t)min(strip, strips - 1) * col_tiles + (int)(side ? blockIdx.z : blockIdx.y);

        copy_async16(to + k * 16, (const uint8_t *)part.b + tile * TILE + piece % each * 16,
                     strip < strips);
    }
    copy_async_commit();
}

/* A block has 16 x 16 numbers of one part, each a sum of its own in the order of rows; of eight
 * bits it is exact. The rows come to it while it adds those before. */
template <int TILE, typename SUM>
static __global__ void gram_kernel(const gpu_lora_part *parts, const int32_t *rows)
{
    GPU_SHARED(shared);
    gpu_lora_part part = parts[blockIdx.x];
    int i = (int)threadIdx.x / 8, j = (int)threadIdx.x % 8 * 2;
    int row = (int)blockIdx.y * 16 + i, col = (int)blockIdx.z * 16 + j;
    int strips = (rows[blockIdx.x] + 15) / 16;
    SUM sum[2] = {0, 0};

    if ((int)blockIdx.y * 16 >= part.rank || (int)blockIdx.z * 16 >= part.rank)
        return;
    fetch_gram<TILE>(shared, part, 0, strips);
    for (int first = 0; first < strips; first += GRAM_STRIPS) {
        const uint8_t *stage = shared + first / GRAM_STRIPS % 2 * gram_stage<TILE>;

        fetch_gram<TILE>(shared + (first / GRAM_STRIPS + 1) % 2 * gram_stage<TILE>, part,
                         first + GRAM_STRIPS, strips);
        copy_async_wait<1>();
        __syncthreads();
#pragma unroll 2
        for (int k = 0; k < GRAM_STRIPS; k++)
            add_gram(stage + k * TILE, stage + (GRAM_STRIPS + k) * TILE, i, j, sum);
        __syncthreads();
    }
    copy_async_wait<0>();
    for (int k = 0; k < 2; k++)
        if (row < part.rank && col + k < part.rank)
            ((float *)part.gram)[row * part.rank + col + k] = (float)sum[k];
}

extern "C" cudaError_t gpu_gram(const gpu_lora_part *parts, const int32_t *rows, int n_parts,
                                int max_rank, int lora8, cudaStream_t stream)
{
    unsigned side = (unsigned)(max_rank + 15) / 16;

    return gpu_launch(lora8 ? gram_kernel<256, int64_t> : gram_kernel<512, float>,
                      dim3((unsigned)n_parts, side, side), dim3(GRAM_THREADS),
                      2 * (size_t)(lora8 ? gram_stage<256> : gram_stage<512>), stream, parts, rows);
}

extern "C" cudaError_t gpu_gram_load_kernels(void)
{
    cudaFuncAttributes ignored;
    cudaError_t code = cudaFuncGetAttributes(&ignored, (const void *)gram_kernel<512, float>);

    return code == cudaSuccess
               ? cudaFuncGetAttributes(&ignored, (const void *)gram_kernel<256, int64_t>)
               : code;
}
