/* packed.cuh: single numbers of packed matrices (README.md, weights), for who needs but some. */
#ifndef OL_PACKED_CUH
#define OL_PACKED_CUH

#include "kernels/fp8.cuh"
#include "kernels/launch.h"

/* The lane that has an element of a tile, and which of its 8 values it is. */
static __device__ __forceinline__ int packed_lane(int row, int col)
{
    return row % 8 * 4 + col % 8 / 2;
}

static __device__ __forceinline__ int packed_place(int row, int col)
{
    return col % 2 + 2 * (row % 16 / 8) + 4 * (col % 16 / 8);
}

/* Which four bits of a tile's word value j of 8 has. */
static __device__ __forceinline__ int packed_nibble(int j)
{
    return j / 2 + 4 * (j % 2);
}

/* Element (row, col) of bf16 tiles, col_tiles of them in 16 rows. */
static __device__ __forceinline__ float packed_bf16(const void *data, int64_t col_tiles, int row,
                                                    int col)
{
    int64_t tile = row / 16 * col_tiles + col / 16;

    return bf16_value(((
        const uint16_t *)data)[(tile * WARP + packed_lane(row, col)) * 8 + packed_place(row, col)]);
}

/* Element (row, col) of a matrix. */
static __device__ __forceinline__ float packed_value(const gpu_matrix &m, int row, int col)
{
    int lane = packed_lane(row, col), j = packed_place(row, col);
    int64_t strip = row / 16, tiles = (m.cols + 63) / 64 * 4, tile = strip * tiles + col / 16;
    int64_t group = (strip * (tiles / 2) + col / 32) * 16 + row % 16;
    const uint16_t *scales = (const uint16_t *)m.scales;
    uint32_t word;
    float q;

    if (m.kind == GPU_BF16)
        return packed_bf16(m.data, tiles, row, col);
    if (m.kind == GPU_INT8) {
        q = ((const int8_t *)m.data)[(tile / 2 * WARP + lane) * 16 + tile % 2 * 8 + j];
        return q * f16_value(scales[group]);
    }
    if (m.kind == GPU_FP8) {
        const uint8_t *piece = (const uint8_t *)m.data + (tile / 2 * WARP + lane) * 16;

        return f8_value(piece[tile % 2 * 8 + f8_place(j)]) * ((const float *)m.scales)[row];
    }
    word = ((const uint32_t *)m.data)[(tile / 4 * WARP + lane) * 4 + tile % 4];
    q = (float)((int)(word >> (4 * packed_nibble(j)) & 15) - 8);
    if (m.kind == GPU_INT4)
        return q * bf16_value(scales[group]);
    return fmaf(q, bf16_value(scales[2 * group]), bf16_value(scales[2 * group + 1]));
}

#endif
