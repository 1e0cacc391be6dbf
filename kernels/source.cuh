/* source.cuh: what was uploaded to be packed (gpu_source), number by number. */
#ifndef OL_SOURCE_CUH
#define OL_SOURCE_CUH

#include "kernels/gpu.cuh"
#include "kernels/launch.h"

/* The block of 32 that element `at` is in: an f16 scale, then 32 bytes or 32 halves of them. */
static __device__ const uint8_t *block_of(const gpu_source &s, int64_t at)
{
    return (const uint8_t *)s.data + at / 32 * (s.dtype == 3 ? 34 : 18);
}

static __device__ float block_value(const gpu_source &s, int64_t at)
{
    const uint8_t *block = block_of(s, at);
    int i = (int)(at % 32), q;

    if (s.dtype == 3)
        q = ((const int8_t *)block)[2 + i];
    else
        q = (i < 16 ? block[2 + i] & 15 : block[2 + i - 16] >> 4) - 8;
    return (float)q * f16_value(*(const uint16_t *)block);
}

/* Q4_K: 256 numbers, as eight groups of 32 with a scale and a minimum: two f16, which all of them
 * are multiples of; 12 bytes with the groups' factors of 6 bits; 128 bytes, each with a number of
 * one group, low, and one of the next. */
struct q4_k_group {
    const uint8_t *q;
    int shift; /* of the group's four bits */
    float scale, min;
};

static __device__ q4_k_group q4_k_group_of(const gpu_source &s, int64_t at)
{
    const uint8_t *super = (const uint8_t *)s.data + at / 256 * 144, *packed = super + 4;
    const uint16_t *d = (const uint16_t *)super;
    int i = (int)(at % 256 / 32);
    int scale = i < 4 ? packed[i] & 63 : (packed[i + 4] & 15) | (packed[i - 4] >> 6) << 4;
    int min = i < 4 ? packed[i + 4] & 63 : (packed[i + 4] >> 4) | (packed[i] >> 6) << 4;

    return {super + 16 + i / 2 * 32, i % 2 * 4, f16_value(d[0]) * (float)scale,
            f16_value(d[1]) * (float)min};
}

static __device__ float q4_k_value(const gpu_source &s, int64_t at)
{
    q4_k_group group = q4_k_group_of(s, at);

    return group.scale * (float)(group.q[at % 32] >> group.shift & 15) - group.min;
}

static __device__ float source_value(const gpu_source &s, int row, int col)
{
    int64_t at = (int64_t)row * s.cols + col;

    if (row >= s.rows || col >= s.cols)
        return 0;
    if (s.dtype >= 3)
        return s.dtype == 5 ? q4_k_value(s, at) : block_value(s, at);
    if (s.dtype == 0)
        return ((const float *)s.data)[at];
    return s.dtype == 1 ? f16_value(((const uint16_t *)s.data)[at])
                        : bf16_value(((const uint16_t *)s.data)[at]);
}

/* A lane's 8 values of a tile, in the order of a[0] low, a[0] high, .. a[3] high. */
static __device__ void load_tile(const gpu_source &s, int strip, int tile, float (&v)[8])
{
    int lane = (int)threadIdx.x % WARP;

    for (int j = 0; j < 8; j++)
        v[j] = source_value(s, 16 * strip + lane / 4 + 8 * (j / 2 % 2),
                            16 * tile + 2 * (lane % 4) + j % 2 + 8 * (j / 4));
}

/* An infinity or NaN has all bits of the exponent. */
static __device__ bool finite_pair(uint32_t pair)
{
    return (pair & 0x7f80u) != 0x7f80u && (pair & 0x7f800000u) != 0x7f800000u;
}

#define BF16_TILE_BYTES 512

/* A warp packs a tile of the source as the `number`th of `to`; *bad becomes 1 where one is not
 * finite, unless it is NULL. */
static __device__ void pack_bf16_tile(void *to, int64_t number, const gpu_source &s, int strip,
                                      int tile, int32_t *bad)
{
    uint32_t pairs[4];
    float v[8];

    load_tile(s, strip, tile, v);
    for (int i = 0; i < 4; i++) {
        pairs[i] = bf16_pack(v[2 * i], v[2 * i + 1]);
        if (bad && !finite_pair(pairs[i]))
            *bad = 1; /* whoever writes it writes the same */
    }
    *(uint4 *)((uint8_t *)to + number * BF16_TILE_BYTES + 16 * ((int)threadIdx.x % WARP)) =
        make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

#endif
