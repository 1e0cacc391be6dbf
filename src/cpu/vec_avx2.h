/* vec_avx2.h: 16 lanes in two registers. AVX2, FMA, F16C; VEC_VNNI: AVX-VNNI too. */
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

/* vpdpbusd takes the weights unsigned: 128 times the sum of inputs comes off again.
 * vpmaddubsw saturates on large unsigned weights, so there they are taken as signed:
 * |w| times the input with w's sign, which fits. */
#if VEC_VNNI
#define VEC_I8_SHIFT 7
#else
#define VEC_I8_SHIFT 0
#endif

/* Tiles: 12 accumulators of 16 registers for plain panels; for block panels 4 integer
 * and 4 float ones. */
#define PLAIN_ROWS 6
#define PLAIN_PANELS 1
#define PLAIN_FEW 2
#define PLAIN_FEW_PANELS 2
#define WIDE_ROWS 6
#define WIDE_PANELS 1
#define WIDE_FROM 32
#define PLAIN_MOST_ROWS 6
#define PLAIN_MOST 12
#define GRAM_ROWS 4
#define BLOCK_ROWS 2
#define BLOCK_PANELS 1
#define BLOCK_FEW_PANELS 2

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
VEC vf vf_bytes(const int8_t *p)
{
    __m128i q = _mm_loadu_si128((const __m128i *)(const void *)p);

    return (vf){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(q, q)))};
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
VEC vf vf_min(vf x, vf y)
{
    return (vf){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)};
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

VEC vi vi_zero(void)
{
    return (vi){_mm256_setzero_si256(), _mm256_setzero_si256()};
}
/* Four bytes, or one int32, in all lanes. */
VEC vi vi_load1(const void *p)
{
    __m256i v;
    int32_t x;

    memcpy(&x, p, sizeof(x));
    v = _mm256_set1_epi32(x);
    return (vi){v, v};
}
#define vi_shl(v, n) ((vi){_mm256_slli_epi32((v).a, (n)), _mm256_slli_epi32((v).b, (n))})
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
#if VEC_VNNI
VEC vi vi_dot_u4(vi acc, vb w, vi x)
{
    return (vi){_mm256_dpbusd_avx_epi32(acc.a, w.a, x.a), _mm256_dpbusd_avx_epi32(acc.b, w.b, x.b)};
}
VEC vi vi_dot_i8(vi acc, vb w, vi x)
{
    return vi_dot_u4(acc, w, x);
}
#else
VEC __m256i vec_pairs(__m256i acc, __m256i u8, __m256i s8)
{
    __m256i pairs = _mm256_maddubs_epi16(u8, s8);

    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
VEC vi vi_dot_u4(vi acc, vb w, vi x)
{
    return (vi){vec_pairs(acc.a, w.a, x.a), vec_pairs(acc.b, w.b, x.b)};
}
VEC vi vi_dot_i8(vi acc, vb w, vi x)
{
    __m256i flip = _mm256_set1_epi8((char)0x80);
    __m256i a = _mm256_xor_si256(w.a, flip), b = _mm256_xor_si256(w.b, flip);

    return (vi){vec_pairs(acc.a, _mm256_abs_epi8(a), _mm256_sign_epi8(x.a, a)),
                vec_pairs(acc.b, _mm256_abs_epi8(b), _mm256_sign_epi8(x.b, b))};
}
#endif
VEC void vec_prefetch(const void *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T0);
}

VEC __m128i vec_bytes(__m256i a, __m256i b)
{
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);

    return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
VEC int32_t vec_sum_i32(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));

    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
}

/* 32 values, rounded to int8 and stored; returns their sum. */
VEC int32_t vf_quantize(vf low, vf high, int8_t *q)
{
    __m256i a = _mm256_cvtps_epi32(low.a), b = _mm256_cvtps_epi32(low.b);
    __m256i c = _mm256_cvtps_epi32(high.a), d = _mm256_cvtps_epi32(high.b);

    _mm_storeu_si128((__m128i *)(void *)q, vec_bytes(a, b));
    _mm_storeu_si128((__m128i *)(void *)(q + 16), vec_bytes(c, d));
    return vec_sum_i32(_mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d)));
}

/* Half precision, saturating; bfloat16, to nearest even (NaN aside). */
VEC void vf_to_f16(uint16_t *p, vf v)
{
    __m256 low = _mm256_set1_ps(-65504.0f), high = _mm256_set1_ps(65504.0f);
    __m128i *at = (__m128i *)(void *)p;

    v.a = _mm256_min_ps(_mm256_max_ps(v.a, low), high);
    v.b = _mm256_min_ps(_mm256_max_ps(v.b, low), high);
    _mm_storeu_si128(at, _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(at + 1, _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT));
}
VEC __m256i vec_bf16_words(__m256 v)
{
    __m256i u = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));

    u = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    return _mm256_srli_epi32(u, 16);
}
VEC void vf_to_bf16(uint16_t *p, vf v)
{
    __m256i words = _mm256_packus_epi32(vec_bf16_words(v.a), vec_bf16_words(v.b));

    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_permute4x64_epi64(words, 0xD8));
}

/* 1 / v, to about 2 ulp: an estimate of 12 bits and one step of Newton's. */
VEC __m256 vec_reciprocal_half(__m256 v)
{
    __m256 r = _mm256_rcp_ps(v);

    return _mm256_fmadd_ps(r, _mm256_fnmadd_ps(v, r, _mm256_set1_ps(1.0f)), r);
}
VEC vf vf_reciprocal(vf v)
{
    return (vf){vec_reciprocal_half(v.a), vec_reciprocal_half(v.b)};
}

/* 2^x = 2^n * p(r), as in vec_avx512.h; 0 below -126, no more than 2^127. */
VEC __m256 vec_exp2_half(__m256 x)
{
    __m256 zero = _mm256_cmp_ps(x, _mm256_set1_ps(-126.0f), _CMP_LT_OQ), n, r, p;
    __m256i power;

    x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(127.0f)), _mm256_set1_ps(-126.0f));
    n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    r = _mm256_sub_ps(x, n);
    p = _mm256_set1_ps(1.5403530e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3333558e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(9.6181291e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.5504109e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(2.4022651e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(6.9314718e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(zero, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}
VEC vf vf_exp2(vf x)
{
    return (vf){vec_exp2_half(x.a), vec_exp2_half(x.b)};
}

#endif
