/*
 * fp8.cuh: numbers of 8 bits as e4m3 has them: a sign, 4 bits of exponent (bias 7), 3 of the
 * fraction; the largest is 448, the smallest 2^-9; no infinity, and none of ours is NaN. bf16 has
 * all of them, so they become bf16 exactly, by arithmetic that every device has.
 */
#ifndef OL_FP8_CUH
#define OL_FP8_CUH

#include "kernels/gpu.cuh"

#define F8_MAX 448.0f
#define F8_PAIR 0x7b807b80u /* 2^120 twice: bf16's bias less e4m3's */

/* Bytes 1 and 3 of u, and 0 and 2, as pairs of bf16. Exponent and fraction, moved to bf16's places,
 * are a number 2^120 times too small, also where the exponent is zero. */
static __device__ __forceinline__ void f8_pairs(uint32_t u, uint32_t &odd, uint32_t &even)
{
    odd = bf16_multiply2((u & 0x80008000u) | (u >> 4 & 0x07f007f0u), F8_PAIR);
    even = bf16_multiply2((u << 8 & 0x80008000u) | (u << 4 & 0x07f007f0u), F8_PAIR);
}

/* Where value j of a tile's 8 of a lane lies (README.md, weights): pairs are bytes 1 and 3 of
 * a word, then 0 and 2. */
static __device__ __forceinline__ int f8_place(int j)
{
    return j / 4 * 4 + j % 2 * 2 + 1 - j / 2 % 2;
}

static __device__ __forceinline__ float f8_value(uint8_t v)
{
    float magnitude = __uint_as_float((uint32_t)(v & 0x7f) << 20) * 0x1p120f;

    return v & 0x80 ? -magnitude : magnitude;
}

/* To nearest even; beyond the largest, it. */
static __device__ __forceinline__ uint32_t f8_nearest(float v)
{
    float magnitude = fminf(fabsf(v), F8_MAX);
    uint32_t sign = __float_as_uint(v) >> 24 & 0x80, bits = __float_as_uint(magnitude);

    if (magnitude < 0x1p-6f) /* multiples of 2^-9, which is the last place of 2^14 */
        return sign | (__float_as_uint(magnitude + 0x1p14f) - 0x46800000u);
    return sign | (((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3));
}

/* -- keys and values: README.md, pages --------------------------------------------------- */

/* What 2^e is stored as, for numbers up to `most`: e + 64, for the least e that 448 * 2^e is not
 * below it. */
static __device__ __forceinline__ uint32_t f8_exponent(float most)
{
    int field = (int)((__float_as_uint(most) + 0x1fffff) >> 23); /* of f32, fraction up to .75 */

    return (uint32_t)min(max(field - 135 + 64, 0), 127);
}

static __device__ __forceinline__ float f8_inverse(uint32_t exponent)
{
    return __uint_as_float((127 + 64 - exponent) << 23);
}

/* 2^e of the two bytes of u. Any byte is some finite number's: also of a slot never written. */
static __device__ __forceinline__ float f8_scale(uint32_t u, int which)
{
    return __uint_as_float(((which ? u >> 8 & 127 : u & 127) + 63) << 23);
}

static __device__ __forceinline__ uint32_t f8_scale_pair(uint32_t u)
{
    return ((u & 127) << 7) + ((u & 0x7f00) << 15) + 0x1f801f80u; /* 63, as bf16's exponent */
}

#endif
