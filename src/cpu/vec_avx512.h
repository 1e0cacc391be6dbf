/* vec_avx512.h: 16 lanes in one register. AVX-512 F, BW, DQ, VL and VNNI. */
#ifndef OL_CPU_VEC_AVX512_H
#define OL_CPU_VEC_AVX512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef __m512 vf;
typedef __m512i vi;
typedef __m512i vb;

/* vpdpbusd takes the weights unsigned: 128 times the sum of inputs comes off again. */
#define VEC_I8_SHIFT 7

/* Tiles: 24 accumulators of 32 registers for plain panels; for block panels 12 integer
 * and 12 float ones. */
#define PLAIN_ROWS 8
#define PLAIN_PANELS 3
#define PLAIN_FEW 2 /* rows up to which more panels are taken at once */
#define PLAIN_FEW_PANELS 4
#define WIDE_ROWS 12 /* of panels that are widened before; WIDE_FROM rows are worth it */
#define WIDE_PANELS 2
#define WIDE_FROM 32
#define PLAIN_MOST_ROWS 12 /* of any tile, and accumulators */
#define PLAIN_MOST 24
#define GRAM_ROWS 8
#define BLOCK_ROWS 6
#define BLOCK_PANELS 2
#define BLOCK_FEW_PANELS 4 /* for one row */

#define VEC static inline __attribute__((always_inline))

VEC vf vf_zero(void)
{
    return _mm512_setzero_ps();
}
VEC vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
VEC vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
VEC void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}
VEC __mmask16 vec_mask(int n)
{
    return (__mmask16)((1u << n) - 1);
}
VEC vf vf_load_n(const float *p, int n)
{
    return _mm512_maskz_loadu_ps(vec_mask(n), p);
}
VEC void vf_store_n(float *p, vf v, int n)
{
    _mm512_mask_storeu_ps(p, vec_mask(n), v);
}
VEC vf vf_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
VEC vf vf_bf16(const uint16_t *p)
{
    __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)p);

    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
VEC vf vf_bytes(const int8_t *p)
{
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
VEC vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
VEC vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
VEC vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
VEC vf vf_min(vf x, vf y)
{
    return _mm512_min_ps(x, y);
}
VEC vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
VEC vf vf_abs(vf a)
{
    return _mm512_abs_ps(a);
}
VEC vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
VEC vf vf_fnma(vf a, vf b, vf c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
VEC float vf_sum(vf v)
{
    return _mm512_reduce_add_ps(v);
}
VEC float vf_max_of(vf v)
{
    return _mm512_reduce_max_ps(v);
}

VEC vi vi_zero(void)
{
    return _mm512_setzero_si512();
}
/* Four bytes, or one int32, in all lanes. */
VEC vi vi_load1(const void *p)
{
    int32_t x;

    memcpy(&x, p, sizeof(x));
    return _mm512_set1_epi32(x);
}
#define vi_shl(v, n) _mm512_slli_epi32((v), (n))
VEC vf vf_from_vi(vi v)
{
    return _mm512_cvtepi32_ps(v);
}
VEC vb vb_load(const uint8_t *p)
{
    return _mm512_loadu_si512(p);
}
VEC vb vb_low(vb v)
{
    return _mm512_and_si512(v, _mm512_set1_epi8(15));
}
VEC vb vb_high(vb v)
{
    return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
}
VEC vi vi_dot_i8(vi acc, vb w, vi x)
{
    return _mm512_dpbusd_epi32(acc, w, x);
}
VEC vi vi_dot_u4(vi acc, vb w, vi x)
{
    return _mm512_dpbusd_epi32(acc, w, x);
}
VEC void vec_prefetch(const void *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T0);
}

/* 32 values, rounded to int8 and stored; returns their sum. */
VEC int32_t vf_quantize(vf low, vf high, int8_t *q)
{
    vi a = _mm512_cvtps_epi32(low), b = _mm512_cvtps_epi32(high);

    _mm_storeu_si128((__m128i *)(void *)q, _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128((__m128i *)(void *)(q + 16), _mm512_cvtepi32_epi8(b));
    return _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
}

/* Half precision, saturating; bfloat16, to nearest even (NaN aside). */
VEC void vf_to_f16(uint16_t *p, vf v)
{
    v = _mm512_min_ps(_mm512_max_ps(v, vf_set1(-65504.0f)), vf_set1(65504.0f));
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
VEC void vf_to_bf16(uint16_t *p, vf v)
{
    vi u = _mm512_castps_si512(v);
    vi odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));

    u = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(u, 16)));
}

/* 1 / v, to about 1 ulp: an estimate of 14 bits and one step of Newton's. */
VEC vf vf_reciprocal(vf v)
{
    vf r = _mm512_rcp14_ps(v);

    return _mm512_fmadd_ps(r, _mm512_fnmadd_ps(v, r, vf_set1(1.0f)), r);
}

/* 2^x = 2^n * p(r), r in [-1/2, 1/2], p the expansion to degree 6: about 1 ulp. Far
 * out it is 0 or infinite, as it should be. */
VEC vf vf_exp2(vf x)
{
    vf n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vf r = _mm512_sub_ps(x, n), p = vf_set1(1.5403530e-4f);

    p = vf_fma(p, r, vf_set1(1.3333558e-3f));
    p = vf_fma(p, r, vf_set1(9.6181291e-3f));
    p = vf_fma(p, r, vf_set1(5.5504109e-2f));
    p = vf_fma(p, r, vf_set1(2.4022651e-1f));
    p = vf_fma(p, r, vf_set1(6.9314718e-1f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return _mm512_scalef_ps(p, n);
}

#endif
