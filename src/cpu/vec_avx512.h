/* vec_avx512.h: 16 lanes in one register. AVX-512 F, BW, DQ, VL and VNNI. */
#ifndef OL_CPU_VEC_AVX512_H
#define OL_CPU_VEC_AVX512_H

#include <immintrin.h>
#include <stdint.h>

typedef __m512 vf;
typedef __m512i vi;
typedef __m512i vb;

/* vpdpbusd takes the weights unsigned: the sum of inputs times 128 comes off again. */
#define VEC_I8_OFFSET 128

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
VEC vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
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
VEC float vf_first(vf v)
{
    return _mm512_cvtss_f32(v);
}

VEC vi vi_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}
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
VEC vi vi_dot_i8(vi acc, vb w, int32_t x)
{
    return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x));
}
VEC vi vi_dot_u4(vi acc, vb w, int32_t x)
{
    return vi_dot_i8(acc, w, x);
}
VEC void vec_prefetch(const void *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T0);
}

/* Rounds to int8, stores, returns the sum. */
VEC int32_t vf_quantize(vf v, int8_t *q)
{
    vi i = _mm512_cvtps_epi32(v);

    _mm_storeu_si128((__m128i *)(void *)q, _mm512_cvtepi32_epi8(i));
    return _mm512_reduce_add_epi32(i);
}

/* exp: 2^n * p(r), r in [-ln2/2, ln2/2], p the degree 6 expansion; about 1 ulp. */
VEC vf vf_exp(vf x)
{
    vf n, r, p;

    x = _mm512_max_ps(_mm512_min_ps(x, vf_set1(88.7f)), vf_set1(-110.0f));
    n = _mm512_roundscale_ps(_mm512_mul_ps(x, vf_set1(1.44269504f)), 8);
    r = _mm512_fnmadd_ps(n, vf_set1(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, vf_set1(-2.12194440e-4f), r);
    p = vf_set1(1.0f / 720);
    p = vf_fma(p, r, vf_set1(1.0f / 120));
    p = vf_fma(p, r, vf_set1(1.0f / 24));
    p = vf_fma(p, r, vf_set1(1.0f / 6));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return _mm512_scalef_ps(p, n);
}

#endif
