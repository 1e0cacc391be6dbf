/*
 * linear_weight.cuh: packed weights (README.md) to fragments of bf16. A piece is what a lane loads
 * at once, 16 bytes: one tile of BF16, two of INT8 and FP8, four of INT4 and INT4M.
 */
#ifndef OL_LINEAR_WEIGHT_CUH
#define OL_LINEAR_WEIGHT_CUH

#include "kernels/fp8.cuh"
#include "kernels/launch.h"

#define PIECE_BYTES 512 /* of a warp */

template <int KIND> struct weight {
    static const int tiles = KIND == GPU_BF16                      ? 1
                             : KIND == GPU_INT8 || KIND == GPU_FP8 ? 2
                                                                   : 4; /* of a piece */
    static const int pieces = 4 / tiles;                                /* of 64 columns */
    static const bool scaled = KIND != GPU_BF16 && KIND != GPU_FP8;     /* in groups of columns */
    static const int scale_each = KIND == GPU_INT4M ? 4 : 2;     /* bytes: with INT4M's offset */
    static const int scale_bytes = scaled ? 32 * scale_each : 0; /* of 16 rows and 64 columns */
};

/* The scales of a lane's two rows, ready to multiply with: f32, or bf16 twice; INT4M's offsets,
 * ready to add. */
struct weight_scales {
    uint32_t low, high, low_offset, high_offset;
};

/* A row's scale as it is stored: with its offset, if there is one. */
template <int KIND> static __device__ __forceinline__ uint32_t stored_scale(const uint8_t *at)
{
    return weight<KIND>::scale_each == 4 ? *(const uint32_t *)at : *(const uint16_t *)at;
}

/* From what is stored. */
template <int KIND>
static __device__ __forceinline__ weight_scales scales_of(uint32_t low, uint32_t high)
{
    if (KIND == GPU_INT8)
        return {__float_as_uint(f16_value((uint16_t)low)),
                __float_as_uint(f16_value((uint16_t)high)), 0, 0};
    if (KIND == GPU_INT4M)
        return {__byte_perm(low, 0, 0x1010), __byte_perm(high, 0, 0x1010),
                __byte_perm(low, 0, 0x3232), __byte_perm(high, 0, 0x3232)};
    return {low * 0x10001u, high * 0x10001u, 0, 0};
}

/* `from`: the scales of 16 rows in two groups of columns. */
template <int KIND>
static __device__ __forceinline__ weight_scales load_scales(const uint8_t *from, int group)
{
    const int each = weight<KIND>::scale_each;

    from += (group * 16 + (int)threadIdx.x % WARP / 4) * each;
    return scales_of<KIND>(stored_scale<KIND>(from), stored_scale<KIND>(from + 8 * each));
}

/* Two bytes of u, each with 128 added, the low and the high 16 bits' `which`-th: scaled. */
static __device__ __forceinline__ uint32_t pair_of_int8(uint32_t u, int which, float scale)
{
    /* 2^23 + the byte */
    float low = __uint_as_float(__byte_perm(u, 0x4b000000u, which ? 0x7442 : 0x7440));
    float high = __uint_as_float(__byte_perm(u, 0x4b000000u, which ? 0x7443 : 0x7441));

    return bf16_pack((low - 8388736.0f) * scale, (high - 8388736.0f) * scale);
}

/* Four bits twice, with 8 added, below 128 as bf16 has it: 136 is q = 0. */
template <int KIND>
static __device__ __forceinline__ uint32_t pair_of_int4(uint32_t u, uint32_t scale, uint32_t offset)
{
    uint32_t q = bf16_subtract2(and_or(u, 0x000f000fu, 0x43004300u), 0x43084308u);

    return KIND == GPU_INT4M ? bf16_multiply_add2(q, scale, offset) : bf16_multiply2(q, scale);
}

/* Tile `tile` of a piece. */
template <int KIND>
static __device__ __forceinline__ void fragment(uint32_t (&a)[4], const uint4 &piece, int tile,
                                                const weight_scales &s)
{
    if (KIND == GPU_BF16) {
        a[0] = piece.x, a[1] = piece.y, a[2] = piece.z, a[3] = piece.w;
    } else if (KIND == GPU_INT8) {
        uint32_t first = (tile ? piece.z : piece.x) ^ 0x80808080u;
        uint32_t second = (tile ? piece.w : piece.y) ^ 0x80808080u;

        a[0] = pair_of_int8(first, 0, __uint_as_float(s.low));
        a[1] = pair_of_int8(first, 1, __uint_as_float(s.high));
        a[2] = pair_of_int8(second, 0, __uint_as_float(s.low));
        a[3] = pair_of_int8(second, 1, __uint_as_float(s.high));
    } else if (KIND == GPU_FP8) {
        f8_pairs(tile ? piece.z : piece.x, a[0], a[1]);
        f8_pairs(tile ? piece.w : piece.y, a[2], a[3]);
    } else {
        uint32_t word = tile == 0 ? piece.x : tile == 1 ? piece.y : tile == 2 ? piece.z : piece.w;

        a[0] = pair_of_int4<KIND>(word, s.low, s.low_offset);
        a[1] = pair_of_int4<KIND>(word >> 4, s.high, s.high_offset);
        a[2] = pair_of_int4<KIND>(word >> 8, s.low, s.low_offset);
        a[3] = pair_of_int4<KIND>(word >> 12, s.high, s.high_offset);
    }
}

#endif
