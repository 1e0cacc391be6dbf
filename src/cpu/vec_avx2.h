/* vec_avx2.h: 16 lanes in two registers. AVX2, FMA, F16C. */
#ifndef OL_CPU_VEC_AVX2_H
#define OL_CPU_VEC_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef struct vf {
    __m256 a, b;
} vf;
typedef struct vi {
    __m256i a, b;
} vi;
typedef struct vb {
    __m256i a, b;
} vb;

/* vpmaddubsw saturates on large unsigned weights, so weights are taken as signed:
 * |w| times the input with w's sign. */
#define VEC_I8_OFFSET 0

#define VEC static inline __attribute__((always_inline))

VEC vf vf_zero(void)
{
    return (vf){_mm256_setzero_ps(), _mm256_setzero_ps()};
}
VEC vf vf_set1(float x)
{
    return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
VEC vf vf_load(const float *p)
{
    return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
VEC void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
VEC vf vf_load_n(const float *p, int n)
{
    float all[16] = {0};

    memcpy(all, p, (size_t)n * sizeof(float));
    return vf_load(all);
}
VEC void vf_store_n(float *p, vf v, int n)
{
    float all[16];

    vf_store(all, v);
    memcpy(p, all, (size_t)n * sizeof(float));
}
VEC vf vf_f16(const uint16_t *p)
{
    const __m128i *h = (const __m128i *)(const void *)p;

    return (vf){_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
}
VEC __m256 vec_bf16_half(__m128i h)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
VEC vf vf_bf16(const uint16_t *p)
{
    const __m128i *h = (const __m128i *)(const void *)p;

    return (vf){vec_bf16_half(_mm_loadu_si128(h)), vec_bf16_half(_mm_loadu_si128(h + 1))};
}
VEC vf vf_add(vf x, vf y)
{
    return (vf){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
VEC vf vf_sub(vf x, vf y)
{
    return (vf){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
VEC vf vf_mul(vf x, vf y)
{
    return (vf){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
VEC vf vf_div(vf x, vf y)
{
    return (vf){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
VEC vf vf_max(vf x, vf y)
{
    return (vf){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
VEC vf vf_abs(vf x)
{
    __m256 sign = _mm256_set1_ps(-0.0f);

    return (vf){_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
VEC vf vf_fma(vf x, vf y, vf z)
{
    return (vf){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
VEC vf vf_fnma(vf x, vf y, vf z)
{
    return (vf){_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
VEC float vf_sum(vf v)
{
    __m256 s = _mm256_add_ps(v.a, v.b);
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));

    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
VEC float vf_max_of(vf v)
{
    __m256 s = _mm256_max_ps(v.a, v.b);
    __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));

    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
}
VEC float vf_first(vf v)
{
    return _mm256_cvtss_f32(v.a);
}

VEC vi vi_set1(int32_t x)
{
    return (vi){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
VEC vf vf_from_vi(vi v)
{
    return (vf){_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)};
}
VEC vb vb_load(const uint8_t *p)
{
    const __m256i *at = (const __m256i *)(const void *)p;

    return (vb){_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
VEC vb vb_low(vb v)
{
    __m256i m = _mm256_set1_epi8(15);

    return (vb){_mm256_and_si256(v.a, m), _mm256_and_si256(v.b, m)};
}
VEC vb vb_high(vb v)
{
    return vb_low((vb){_mm256_srli_epi16(v.a, 4), _mm256_srli_epi16(v.b, 4)});
}
VEC __m256i vec_pairs(__m256i acc, __m256i u8, __m256i s8)
{
    __m256i pairs = _mm256_maddubs_epi16(u8, s8);

    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
VEC vi vi_dot_u4(vi acc, vb w, int32_t x)
{
    __m256i q = _mm256_set1_epi32(x);

    return (vi){vec_pairs(acc.a, w.a, q), vec_pairs(acc.b, w.b, q)};
}
VEC vi vi_dot_i8(vi acc, vb w, int32_t x)
{
    __m256i q = _mm256_set1_epi32(x), flip = _mm256_set1_epi8((char)0x80);
    __m256i a = _mm256_xor_si256(w.a, flip), b = _mm256_xor_si256(w.b, flip);

    return (vi){vec_pairs(acc.a, _mm256_abs_epi8(a), _mm256_sign_epi8(q, a)),
                vec_pairs(acc.b, _mm256_abs_epi8(b), _mm256_sign_epi8(q, b))};
}
VEC void vec_prefetch(const void *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T0);
}

/* Rounds to int8, stores, returns the sum. */
VEC int32_t vf_quantize(vf v, int8_t *q)
{
    __m256i a = _mm256_cvtps_epi32(v.a), b = _mm256_cvtps_epi32(v.b);
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
    __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    int32_t sums[8], sum = 0;

    _mm_storeu_si128((__m128i *)(void *)q, bytes);
    _mm256_storeu_si256((__m256i *)(void *)sums, _mm256_add_epi32(a, b));
    for (int i = 0; i < 8; i++)
        sum += sums[i];
    return sum;
}

/* exp: 2^n * p(r), as in vec_avx512.h; zero below -87. */
VEC __m256 vec_exp_half(__m256 x)
{
    __m256 zero = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_LT_OQ), n, r, p;
    __m256i power;

    x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(88.3f)), _mm256_set1_ps(-87.0f));
    n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), 8);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    p = _mm256_set1_ps(1.0f / 720);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(zero, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}
VEC vf vf_exp(vf x)
{
    return (vf){vec_exp_half(x.a), vec_exp_half(x.b)};
}

#endif
