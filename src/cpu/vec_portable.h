/* vec_portable.h: 16 lanes as an array, in plain C: the oracle of the other sets. */
#ifndef OL_CPU_VEC_PORTABLE_H
#define OL_CPU_VEC_PORTABLE_H

#include "base/tensor.h"

#include <math.h>
#include <string.h>

typedef struct vf {
    float f[16];
} vf;
typedef struct vi {
    int32_t i[16];
} vi;
typedef struct vb {
    uint8_t b[64];
} vb;

#define VEC_I8_OFFSET 0 /* weights are taken as signed */
#define VEC_NO_TILES

#define VEC static inline __attribute__((always_inline))
#define LANES for (int l = 0; l < 16; l++)

VEC vf vf_set1(float x)
{
    vf v;

    LANES v.f[l] = x;
    return v;
}
VEC vf vf_zero(void)
{
    return vf_set1(0);
}
VEC vf vf_load(const float *p)
{
    vf v;

    memcpy(v.f, p, sizeof(v.f));
    return v;
}
VEC void vf_store(float *p, vf v)
{
    memcpy(p, v.f, sizeof(v.f));
}
VEC vf vf_load_n(const float *p, int n)
{
    vf v = vf_zero();

    memcpy(v.f, p, (size_t)n * sizeof(float));
    return v;
}
VEC void vf_store_n(float *p, vf v, int n)
{
    memcpy(p, v.f, (size_t)n * sizeof(float));
}
VEC vf vf_f16(const uint16_t *p)
{
    vf v;

    LANES v.f[l] = ol_f16_to_f32(p[l]);
    return v;
}
VEC vf vf_bf16(const uint16_t *p)
{
    vf v;

    LANES v.f[l] = ol_bf16_to_f32(p[l]);
    return v;
}
VEC vf vf_add(vf a, vf b)
{
    LANES a.f[l] += b.f[l];
    return a;
}
VEC vf vf_sub(vf a, vf b)
{
    LANES a.f[l] -= b.f[l];
    return a;
}
VEC vf vf_mul(vf a, vf b)
{
    LANES a.f[l] *= b.f[l];
    return a;
}
VEC vf vf_div(vf a, vf b)
{
    LANES a.f[l] /= b.f[l];
    return a;
}
VEC vf vf_max(vf a, vf b)
{
    LANES a.f[l] = a.f[l] > b.f[l] ? a.f[l] : b.f[l];
    return a;
}
VEC vf vf_abs(vf a)
{
    LANES a.f[l] = fabsf(a.f[l]);
    return a;
}
VEC vf vf_fma(vf a, vf b, vf c)
{
    LANES c.f[l] += a.f[l] * b.f[l];
    return c;
}
VEC vf vf_fnma(vf a, vf b, vf c)
{
    LANES c.f[l] -= a.f[l] * b.f[l];
    return c;
}
VEC float vf_sum(vf v)
{
    for (int half = 8; half; half /= 2)
        for (int l = 0; l < half; l++)
            v.f[l] += v.f[l + half];
    return v.f[0];
}
VEC float vf_max_of(vf v)
{
    float max = v.f[0];

    LANES max = v.f[l] > max ? v.f[l] : max;
    return max;
}
VEC float vf_first(vf v)
{
    return v.f[0];
}
VEC vf vf_exp(vf x)
{
    LANES x.f[l] = expf(x.f[l]);
    return x;
}

VEC vi vi_set1(int32_t x)
{
    vi v;

    LANES v.i[l] = x;
    return v;
}
VEC vf vf_from_vi(vi v)
{
    vf f;

    LANES f.f[l] = (float)v.i[l];
    return f;
}
VEC vb vb_load(const uint8_t *p)
{
    vb v;

    memcpy(v.b, p, sizeof(v.b));
    return v;
}
VEC vb vb_low(vb v)
{
    for (int i = 0; i < 64; i++)
        v.b[i] &= 15;
    return v;
}
VEC vb vb_high(vb v)
{
    for (int i = 0; i < 64; i++)
        v.b[i] >>= 4;
    return v;
}
VEC vi vi_dot_u4(vi acc, vb w, int32_t x)
{
    int8_t q[4];

    memcpy(q, &x, sizeof(q));
    LANES for (int k = 0; k < 4; k++) acc.i[l] += w.b[4 * l + k] * q[k];
    return acc;
}
VEC vi vi_dot_i8(vi acc, vb w, int32_t x)
{
    int8_t q[4];

    memcpy(q, &x, sizeof(q));
    LANES for (int k = 0; k < 4; k++) acc.i[l] += (w.b[4 * l + k] - 128) * q[k];
    return acc;
}
VEC void vec_prefetch(const void *p)
{
    (void)p;
}
VEC int32_t vf_quantize(vf v, int8_t *q)
{
    int32_t sum = 0;

    LANES
    {
        q[l] = (int8_t)lrintf(v.f[l]);
        sum += q[l];
    }
    return sum;
}

#endif
