/* matrix.c: see matrix.h. Packing runs once per weight, one panel at a time. */
#include "cpu/matrix.h"

#include <math.h>
#include <string.h>

cpu_panel_kind cpu_matrix_kind(ol_dtype dtype, int64_t cols, ol_quantization quantization)
{
    bool blocks = cols % OL_BLOCK == 0;

    switch (dtype) {
    case OL_F32:
    case OL_F16:
    case OL_BF16:
        if (blocks && quantization == OL_QUANT_INT8)
            return PANEL_I8;
        if (blocks && quantization == OL_QUANT_INT4)
            return PANEL_I4;
        return dtype == OL_F32 ? PANEL_F32 : dtype == OL_F16 ? PANEL_F16 : PANEL_BF16;
    case OL_Q4_0:
        return PANEL_I4;
    case OL_Q4_K:
        return PANEL_I4M;
    case OL_F8E4M3: /* no file's */
    case OL_Q8_0:
    case OL_Q6_K:
        break;
    }
    return quantization == OL_QUANT_INT4 ? PANEL_I4 : PANEL_I8;
}

size_t cpu_matrix_shape(cpu_matrix *m, cpu_panel_kind kind, int64_t rows, int64_t cols)
{
    size_t step = cpu_kind_is_block(kind) ? cpu_pair_bytes(kind)
                  : kind == PANEL_F32     ? 4 * PANEL
                  : kind == PANEL_BYTES   ? PANEL
                                          : 2 * PANEL;
    size_t steps = (size_t)(cpu_kind_is_block(kind) ? (cols / OL_BLOCK + 1) / 2 : cols), bytes;

    *m = (cpu_matrix){.kind = kind, .rows = rows, .cols = cols};
    if (__builtin_mul_overflow(steps, step, &m->panel_bytes))
        return SIZE_MAX;
    m->panel_bytes = (m->panel_bytes + 63) & ~(size_t)63;
    return __builtin_mul_overflow(m->panel_bytes, (size_t)cpu_panels(m), &bytes) ? SIZE_MAX : bytes;
}

/* -- plain panels --------------------------------------------------------------------- */

static const uint8_t *row_data(const cpu_source *source, int64_t row)
{
    return source->rows ? source->rows[row].data : source->data + (size_t)row * source->row_bytes;
}

static ol_dtype row_dtype(const cpu_source *source, int64_t row)
{
    return source->rows ? source->rows[row].dtype : source->dtype;
}

cpu_row cpu_source_row(const cpu_source *source, int64_t row)
{
    return (cpu_row){row_data(source, row), row_dtype(source, row)};
}

void cpu_to_floats(const cpu_kernels *kernels, ol_dtype dtype, const void *data, float *out,
                   int64_t n)
{
    if ((dtype == OL_F16 || dtype == OL_BF16) && (uintptr_t)data % 2 == 0)
        kernels->from_half(dtype, data, out, n);
    else
        ol_dequantize(dtype, data, out, (size_t)n);
}

/* Whether all rows of a panel have the panel's own type. */
static bool is_as_it_is(const cpu_matrix *m, const cpu_source *source, int64_t row, int64_t end)
{
    static const ol_dtype dtypes[] = {OL_F32, OL_F16, OL_BF16};

    for (; row < end; row++)
        if (row_dtype(source, row) != dtypes[m->kind])
            return false;
    return true;
}

/* As a panel of their own type, or of F32. */
static void pack_plain(const cpu_kernels *kernels, const cpu_matrix *m, const cpu_source *source,
                       int64_t panel, float *values)
{
    uint8_t *out = m->data + (size_t)panel * m->panel_bytes;
    int64_t first = panel * PANEL, end = first + PANEL < m->rows ? first + PANEL : m->rows;
    const uint8_t *rows[PANEL] = {NULL};

    if (is_as_it_is(m, source, first, end)) {
        for (int64_t row = first; row < end; row++)
            rows[row - first] = row_data(source, row);
        kernels->interleave(rows, m->kind == PANEL_F32 ? 4 : 2, m->cols, out);
        return;
    }
    memset(out, 0, m->panel_bytes);
    for (int64_t row = first; row < end; row++) {
        cpu_to_floats(kernels, row_dtype(source, row), row_data(source, row), values, m->cols);
        for (int64_t k = 0; k < m->cols; k++)
            memcpy(out + (k * PANEL + row - first) * 4, values + k, 4);
    }
}

/* -- block panels: a lane of a block ---------------------------------------------------- */

static void put_half(uint8_t *at, int lane, uint16_t half)
{
    memcpy(at + 2 * lane, &half, 2);
}

static void put_i8(uint8_t *panel, int64_t b, int lane, const int8_t *q, uint16_t scale)
{
    uint8_t *block = panel + cpu_block_at(PANEL_I8, b) + 4 * lane;

    for (int k = 0; k < OL_BLOCK; k++)
        block[k / 4 * 4 * PANEL + k % 4] = (uint8_t)(q[k] + 128);
    put_half(panel + cpu_scale_at(PANEL_I8, b), lane, scale);
}

/* Values of 0..15. */
static void put_i4(uint8_t *panel, cpu_panel_kind kind, int64_t b, int lane, const uint8_t *v,
                   uint16_t scale)
{
    uint8_t *block = panel + cpu_block_at(kind, b) + 4 * lane;

    for (int k = 0; k < OL_BLOCK / 2; k++)
        block[k / 4 * 4 * PANEL + k % 4] = (uint8_t)(v[k] | v[k + 16] << 4);
    put_half(panel + cpu_scale_at(kind, b), lane, scale);
}

/* -- block panels from floats ------------------------------------------------------------ */

/* A scale must be a finite half, whatever the file says. */
static uint16_t half_scale(float d)
{
    if (!(fabsf(d) <= 65504.0f))
        d = d < 0 ? -65504.0f : d > 0 ? 65504.0f : 0;
    return ol_f32_to_f16(d);
}

/* x / d, rounded, within [low, high]; d == 0 or NaN gives low or 0. */
static float rounded(float x, float inverse, float low, float high)
{
    float v = x * inverse;

    v = v > low ? v : low;
    return rintf(v < high ? v : high);
}

static void quantize_i8(const float *x, int8_t *q, uint16_t *scale)
{
    float max = 0, d;

    for (int k = 0; k < OL_BLOCK; k++)
        max = fabsf(x[k]) > max ? fabsf(x[k]) : max;
    *scale = half_scale(max / 127.0f);
    d = ol_f16_to_f32(*scale);
    for (int k = 0; k < OL_BLOCK; k++)
        q[k] = d > 0 ? (int8_t)rounded(x[k], 1.0f / d, -127, 127) : 0;
}

/* Quantises with the scale; returns the squared error. */
static float try_i4(const float *x, uint16_t scale, uint8_t *v)
{
    float d = ol_f16_to_f32(scale), inverse = d != 0 ? 1.0f / d : 0, error = 0;

    for (int k = 0; k < OL_BLOCK; k++) {
        float q = rounded(x[k], inverse, -8, 7), e = x[k] - d * q;

        v[k] = (uint8_t)(int8_t)(q + 8);
        error += e * e;
    }
    return error;
}

/* The value of largest magnitude becomes about -8 (or 8, with a negative scale). Where
 * exactly is a trade between it and the others: the scale with the least error of a
 * few is taken. */
static void quantize_i4(const float *x, uint8_t *v, uint16_t *scale)
{
    static const float ends[] = {-8.0f, -8.4f, -7.6f, -7.2f, -6.8f, -9.0f, 7.0f};
    float extreme = 0, best = INFINITY;
    uint8_t trial[OL_BLOCK];

    for (int k = 0; k < OL_BLOCK; k++)
        extreme = fabsf(x[k]) > fabsf(extreme) ? x[k] : extreme;
    *scale = 0;
    memset(v, 8, OL_BLOCK);
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        uint16_t d = half_scale(extreme / ends[i]);
        float error = try_i4(x, d, trial);

        if (error < best) {
            best = error;
            *scale = d;
            memcpy(v, trial, sizeof(trial));
        }
    }
}

static void pack_floats(const cpu_matrix *m, const float *values, int lane, uint8_t *out)
{
    for (int64_t b = 0; b < m->cols / OL_BLOCK; b++) {
        const float *x = values + b * OL_BLOCK;
        uint16_t scale;

        if (m->kind == PANEL_I8) {
            int8_t q[OL_BLOCK];

            quantize_i8(x, q, &scale);
            put_i8(out, b, lane, q, scale);
        } else {
            uint8_t v[OL_BLOCK];

            quantize_i4(x, v, &scale);
            put_i4(out, PANEL_I4, b, lane, v, scale);
        }
    }
}

/* -- block panels from block types --------------------------------------------------------- */

static void pack_q8_0(const cpu_matrix *m, const uint8_t *src, int lane, uint8_t *out)
{
    for (int64_t b = 0; b < m->cols / OL_BLOCK; b++, src += 34) {
        uint16_t scale;

        memcpy(&scale, src, 2);
        put_i8(out, b, lane, (const int8_t *)src + 2, scale);
    }
}

static void pack_q4_0(const cpu_matrix *m, const uint8_t *src, int lane, uint8_t *out)
{
    for (int64_t b = 0; b < m->cols / OL_BLOCK; b++, src += 18) {
        uint8_t *block = out + cpu_block_at(PANEL_I4, b) + 4 * lane;

        for (int k = 0; k < 16; k++) /* the same nibbles, in another order of bytes */
            block[k / 4 * 4 * PANEL + k % 4] = src[2 + k];
        memcpy(out + cpu_scale_at(PANEL_I4, b) + 2 * lane, src, 2);
    }
}

/* Sub-blocks of 32 with their own scale and minimum, made explicit in halves. */
static void pack_q4_k(const cpu_matrix *m, const uint8_t *src, int lane, uint8_t *out)
{
    for (int64_t b = 0; b < m->cols / OL_BLOCK; b++) {
        const uint8_t *super = src + b / 8 * 144, *packed = super + 4;
        int j = (int)(b % 8);
        const uint8_t *q = super + 16 + j / 2 * 32;
        int scale = j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
        int min = j < 4 ? packed[j + 4] & 63 : (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
        uint8_t v[OL_BLOCK];
        uint16_t h[2];

        memcpy(h, super, 4);
        for (int k = 0; k < OL_BLOCK; k++)
            v[k] = j % 2 ? q[k] >> 4 : q[k] & 15;
        put_i4(out, PANEL_I4M, b, lane, v, half_scale(ol_f16_to_f32(h[0]) * (float)scale));
        put_half(out + cpu_min_at(b), lane, half_scale(ol_f16_to_f32(h[1]) * (float)min));
    }
}

void cpu_matrix_pack(const cpu_kernels *kernels, const cpu_matrix *m, const cpu_source *source,
                     int64_t panel, float *values)
{
    uint8_t *out = m->data + (size_t)panel * m->panel_bytes;

    if (!cpu_kind_is_block(m->kind)) {
        pack_plain(kernels, m, source, panel, values);
        return;
    }
    for (int lane = 0; lane < PANEL && panel * PANEL + lane < m->rows; lane++) {
        int64_t row = panel * PANEL + lane;
        ol_dtype dtype = row_dtype(source, row);

        if (dtype == OL_Q8_0 && m->kind == PANEL_I8)
            pack_q8_0(m, row_data(source, row), lane, out);
        else if (dtype == OL_Q4_0)
            pack_q4_0(m, row_data(source, row), lane, out);
        else if (dtype == OL_Q4_K)
            pack_q4_k(m, row_data(source, row), lane, out);
        else {
            cpu_to_floats(kernels, dtype, row_data(source, row), values, m->cols);
            pack_floats(m, values, lane, out);
        }
    }
}

/* -- reading back ---------------------------------------------------------------------- */

static float half_at(const uint8_t *at, int lane)
{
    uint16_t half;

    memcpy(&half, at + 2 * lane, 2);
    return ol_f16_to_f32(half);
}

static void read_block(const cpu_matrix *m, const uint8_t *panel, int64_t b, int lane, float *out)
{
    const uint8_t *block = panel + cpu_block_at(m->kind, b) + 4 * lane;
    bool i8 = m->kind == PANEL_I8;
    float scale = half_at(panel + cpu_scale_at(m->kind, b), lane);
    float min = m->kind == PANEL_I4M ? half_at(panel + cpu_min_at(b), lane) : 0;
    int offset = i8 ? 128 : m->kind == PANEL_I4 ? 8 : 0;

    for (int k = 0; k < OL_BLOCK; k++) {
        int at = i8 ? k : k % 16, v = block[at / 4 * 4 * PANEL + at % 4];

        if (!i8)
            v = k < 16 ? v & 15 : v >> 4;
        out[k] = scale * (float)(v - offset) - min;
    }
}

void cpu_matrix_row(const cpu_matrix *m, int64_t row, float *out)
{
    const uint8_t *panel = m->data + (size_t)(row / PANEL) * m->panel_bytes;
    int lane = (int)(row % PANEL);

    if (cpu_kind_is_block(m->kind)) {
        for (int64_t b = 0; b < m->cols / OL_BLOCK; b++)
            read_block(m, panel, b, lane, out + b * OL_BLOCK);
        return;
    }
    for (int64_t k = 0; k < m->cols; k++) {
        size_t at = (size_t)k * PANEL + (size_t)lane;
        uint16_t half;

        if (m->kind == PANEL_F32) {
            memcpy(&out[k], panel + at * 4, 4);
            continue;
        }
        if (m->kind == PANEL_BYTES) {
            out[k] = (float)((const int8_t *)panel)[at];
            continue;
        }
        memcpy(&half, panel + at * 2, 2);
        out[k] = m->kind == PANEL_F16 ? ol_f16_to_f32(half) : ol_bf16_to_f32(half);
    }
}
