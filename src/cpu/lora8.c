/* lora8.c: see lora8.h. Loops are written so that compilers make vectors of them. */
#include "cpu/lora8.h"

#include <string.h>

#define MOST 127.0f
#define INFINITE 0x7f800000 /* a float's bits; NaN's are more */

static inline int32_t bits_of(float x)
{
    int32_t bits;

    memcpy(&bits, &x, 4);
    return bits;
}

static inline float float_of(int32_t bits)
{
    float x;

    memcpy(&x, &bits, 4);
    return x;
}

size_t cpu_lora8_values(size_t cols)
{
    return cols * (1 + PANEL / sizeof(float)); /* a row, and a panel's bytes */
}

/* -- scales ------------------------------------------------------------------------------------ */

/* Magnitudes have the order of their bits. */
static int32_t largest(const float *x, int64_t n)
{
    int32_t most = 0;

    for (int64_t i = 0; i < n; i++) {
        int32_t bits = bits_of(x[i]) & INT32_MAX;

        most = bits > most ? bits : most;
    }
    return most;
}

static void larger_of_each(const float *x, int64_t n, float *most)
{
    for (int64_t i = 0; i < n; i++) {
        int32_t bits = bits_of(x[i]) & INT32_MAX, before = bits_of(most[i]);

        most[i] = float_of(bits > before ? bits : before);
    }
}

bool cpu_lora8_scales(const cpu_kernels *kernels, const ol_tensor *t, bool by_columns,
                      float *scales, float *values)
{
    int64_t cols = t->shape[1], ranks = by_columns ? cols : t->shape[0];
    const uint8_t *row = t->data;
    size_t row_bytes = 0;

    (void)ol_dtype_row_bytes(t->dtype, cols, &row_bytes);
    memset(scales, 0, (size_t)ranks * sizeof(float));
    for (int64_t r = 0; r < t->shape[0]; r++, row += row_bytes) {
        cpu_to_floats(kernels, t->dtype, row, values, cols);
        if (by_columns)
            larger_of_each(values, cols, scales);
        else
            scales[r] = float_of(largest(values, cols));
    }
    for (int64_t r = 0; r < ranks; r++) {
        if (bits_of(scales[r]) >= INFINITE)
            return false;
        scales[r] /= MOST;
    }
    return true;
}

/* -- numbers ----------------------------------------------------------------------------------- */

/* A rank whose scale is zero is zero. 1.5 * 2^23 leaves no bits for a fraction. */
static inline float rounded(float x, float scale)
{
    float q = scale > 0 ? x / scale : 0;

    q = q > -MOST ? q : -MOST;
    q = q < MOST ? q : MOST;
    return (q + 12582912.0f) - 12582912.0f;
}

void cpu_lora8_round(float *x, const float *scales, bool by_columns, int64_t n)
{
    float scale = scales[0];

    if (by_columns)
        for (int64_t i = 0; i < n; i++)
            x[i] = rounded(x[i], scales[i]);
    else
        for (int64_t i = 0; i < n; i++)
            x[i] = rounded(x[i], scale);
}

void cpu_lora8_pack(const cpu_kernels *kernels, const cpu_matrix *m, const cpu_lora8 *source,
                    int64_t panel, float *values)
{
    int64_t first = panel * PANEL, end = first + PANEL < m->rows ? first + PANEL : m->rows;
    int8_t *bytes = (int8_t *)(values + m->cols);
    const uint8_t *rows[PANEL] = {NULL};

    for (int64_t row = first; row < end; row++) {
        const cpu_row at = cpu_source_row(&source->from, row);
        int8_t *to = bytes + (row - first) * m->cols;

        cpu_to_floats(kernels, at.dtype, at.data, values, m->cols);
        cpu_lora8_round(values, source->scales + (source->by_columns ? 0 : row), source->by_columns,
                        m->cols);
        for (int64_t k = 0; k < m->cols; k++)
            to[k] = (int8_t)(int32_t)values[k];
        rows[row - first] = (const uint8_t *)to;
    }
    kernels->interleave(rows, 1, m->cols, m->data + (size_t)panel * m->panel_bytes);
}
