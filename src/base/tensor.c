/* tensor.c: see tensor.h. Block layouts follow ggml's block_q8_0, block_q4_0,
 * block_q4_K and block_q6_K, which GGUF files store. */
#include "base/tensor.h"

#include <math.h>
#include <string.h>

static const struct {
    const char *name;
    int block;
    size_t bytes;
} kinds[OL_DTYPE_COUNT] = {
    [OL_F32] = {"F32", 1, 4},
    [OL_F16] = {"F16", 1, 2},
    [OL_BF16] = {"BF16", 1, 2},
    [OL_F8E4M3] = {"F8_E4M3", 1, 1},
    [OL_Q8_0] = {"Q8_0", OL_BLOCK, 34},
    [OL_Q4_0] = {"Q4_0", OL_BLOCK, 18},
    [OL_Q4_K] = {"Q4_K", OL_SUPERBLOCK, 144},
    [OL_Q6_K] = {"Q6_K", OL_SUPERBLOCK, 210},
};

const char *ol_dtype_name(ol_dtype dtype)
{
    return (unsigned)dtype < OL_DTYPE_COUNT ? kinds[dtype].name : "unknown";
}

int ol_dtype_block(ol_dtype dtype)
{
    return kinds[dtype].block;
}

size_t ol_dtype_block_bytes(ol_dtype dtype)
{
    return kinds[dtype].bytes;
}

bool ol_dtype_row_bytes(ol_dtype dtype, int64_t cols, size_t *bytes)
{
    int block = kinds[dtype].block;

    if (cols < 0 || cols % block != 0)
        return false;
    return !__builtin_mul_overflow((size_t)(cols / block), kinds[dtype].bytes, bytes);
}

bool ol_shape_count(const int64_t *shape, int n_dims, int64_t *count)
{
    int64_t n = 1;

    for (int i = 0; i < n_dims; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(n, shape[i], &n))
            return false;
    *count = n;
    return true;
}

float ol_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exponent = (h >> 10) & 0x1F;
    uint32_t mantissa = h & 0x3FF;
    union {
        uint32_t u;
        float f;
    } v;

    if (exponent == 0) { /* zero or subnormal: exact in f32 */
        v.f = (float)mantissa * 0x1p-24f;
        v.u |= sign;
    } else if (exponent == 31) {
        v.u = sign | 0x7F800000u | mantissa << 13;
    } else {
        v.u = sign | (exponent + 112) << 23 | mantissa << 13;
    }
    return v.f;
}

float ol_f8_to_f32(uint8_t v)
{
    int exponent = v >> 3 & 15, fraction = v & 7;
    float x = exponent ? ldexpf((float)(8 + fraction), exponent - 10) : (float)fraction * 0x1p-9f;

    if ((v & 0x7F) == 0x7F)
        return NAN;
    return v & 0x80 ? -x : x;
}

uint16_t ol_f32_to_f16(float f)
{
    union {
        float f;
        uint32_t u;
    } v = {.f = f};
    uint32_t sign = (v.u >> 16) & 0x8000;
    uint32_t magnitude = v.u & 0x7FFFFFFFu;

    if (magnitude > 0x7F800000u)
        return (uint16_t)(sign | 0x7E00);
    if (magnitude >= 0x477FF000u) /* rounds beyond 65504 */
        return (uint16_t)(sign | 0x7C00);
    if (magnitude < 0x38800000u) { /* subnormal: let the FPU round to a multiple of 2^-24 */
        union {
            uint32_t u;
            float f;
        } m = {.u = magnitude};

        m.f += 0.5f; /* ulp of [0.5, 1) is 2^-24 */
        return (uint16_t)(sign | (m.u - 0x3F000000u));
    }
    magnitude += 0xFFF + ((magnitude >> 13) & 1);
    return (uint16_t)(sign | ((magnitude - 0x38000000u) >> 13));
}

uint16_t ol_f32_to_bf16(float f)
{
    union {
        float f;
        uint32_t u;
    } v = {.f = f};

    if ((v.u & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)((v.u >> 16) | 0x40);
    return (uint16_t)((v.u + 0x7FFF + ((v.u >> 16) & 1)) >> 16);
}

static uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static float load_f16(const uint8_t *p)
{
    return ol_f16_to_f32(load_u16(p));
}

static void block_q8_0(const uint8_t *b, float *y)
{
    float d = load_f16(b);

    for (int i = 0; i < OL_BLOCK; i++)
        y[i] = d * (float)(int8_t)b[2 + i];
}

static void block_q4_0(const uint8_t *b, float *y)
{
    float d = load_f16(b);

    for (int i = 0; i < OL_BLOCK / 2; i++) {
        y[i] = d * (float)((b[2 + i] & 15) - 8);
        y[i + OL_BLOCK / 2] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

static void block_q4_k(const uint8_t *b, float *y)
{
    float d = load_f16(b), dmin = load_f16(b + 2);
    const uint8_t *packed = b + 4, *q = b + 16;

    for (int j = 0; j < 8; j++) { /* eight sub-blocks of 32 */
        int scale, min;

        if (j < 4) {
            scale = packed[j] & 63;
            min = packed[j + 4] & 63;
        } else {
            scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
            min = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
        }
        for (int i = 0; i < 32; i++) {
            uint8_t pair = q[(j / 2) * 32 + i];
            int v = j % 2 ? pair >> 4 : pair & 15;

            y[j * 32 + i] = d * (float)scale * (float)v - dmin * (float)min;
        }
    }
}

static void block_q6_k(const uint8_t *b, float *y)
{
    const uint8_t *low = b, *high = b + 128;
    const int8_t *scale = (const int8_t *)b + 192;
    float d = load_f16(b + 208);

    for (int half = 0; half < 2; half++, low += 64, high += 32, scale += 8, y += 128)
        for (int i = 0; i < 32; i++)
            for (int k = 0; k < 4; k++) {
                int nibble = k < 2 ? low[i + 32 * k] & 15 : low[i + 32 * (k - 2)] >> 4;
                int v = (nibble | ((high[i] >> 2 * k) & 3) << 4) - 32;

                y[i + 32 * k] = d * (float)scale[i / 16 + 2 * k] * (float)v;
            }
}

void ol_dequantize(ol_dtype dtype, const void *src, float *dst, size_t n)
{
    const uint8_t *p = src;
    size_t step = kinds[dtype].bytes, block = (size_t)kinds[dtype].block;

    if (dtype == OL_F32) {
        memcpy(dst, src, n * sizeof(float));
        return;
    }
    for (size_t i = 0; i < n; i += block, p += step, dst += block)
        switch (dtype) {
        case OL_F32:
            break;
        case OL_F16:
            *dst = load_f16(p);
            break;
        case OL_BF16:
            *dst = ol_bf16_to_f32(load_u16(p));
            break;
        case OL_F8E4M3:
            *dst = ol_f8_to_f32(*p);
            break;
        case OL_Q8_0:
            block_q8_0(p, dst);
            break;
        case OL_Q4_0:
            block_q4_0(p, dst);
            break;
        case OL_Q4_K:
            block_q4_k(p, dst);
            break;
        case OL_Q6_K:
            block_q6_k(p, dst);
            break;
        }
}
