/* lora8.c: see lora8.h. Loops are written so that compilers make vectors of them: no branches, no
 * comparisons of floats; and rows of B, which are short, are taken as many as a panel has. */
#include "cpu/lora8.h"

#include <math.h>
#include <string.h>

#define MOST 127
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

static void measure_rows(const cpu_kernels *kernels, const ol_tensor *t, size_t row_bytes,
                         float *most, float *values)
{
    for (int64_t r = 0; r < t->shape[0]; r++) {
        cpu_to_floats(kernels, t->dtype, (const uint8_t *)t->data + (size_t)r * row_bytes, values,
                      t->shape[1]);
        most[r] = float_of(largest(values, t->shape[1]));
    }
}

/* `each`: room for the largest of PANEL rows' numbers. */
static void measure_columns(const cpu_kernels *kernels, const ol_tensor *t, size_t row_bytes,
                            float *most, float *each, float *values)
{
    int64_t cols = t->shape[1];

    memset(each, 0, cpu_lora8_divisors((size_t)cols) * sizeof(float));
    for (int64_t r = 0; r < t->shape[0]; r += PANEL) {
        int64_t n = t->shape[0] - r < PANEL ? t->shape[0] - r : PANEL;

        cpu_to_floats(kernels, t->dtype, (const uint8_t *)t->data + (size_t)r * row_bytes, values,
                      n * cols);
        larger_of_each(values, n * cols, each);
    }
    memset(most, 0, (size_t)cols * sizeof(float));
    for (int r = 0; r < PANEL; r++)
        larger_of_each(each + r * cols, cols, most);
}

bool cpu_lora8_measure(const cpu_kernels *kernels, const ol_tensor *t, bool by_columns,
                       float *scales, float *divisors, float *values)
{
    int64_t ranks = by_columns ? t->shape[1] : t->shape[0];
    int copies = by_columns ? PANEL : 1;
    size_t row_bytes = 0;

    (void)ol_dtype_row_bytes(t->dtype, t->shape[1], &row_bytes);
    if (by_columns)
        measure_columns(kernels, t, row_bytes, scales, divisors, values);
    else
        measure_rows(kernels, t, row_bytes, scales, values);
    for (int64_t r = 0; r < ranks; r++) {
        if (bits_of(scales[r]) >= INFINITE)
            return false;
        scales[r] /= MOST;
        for (int c = 0; c < copies; c++)
            divisors[c * ranks + r] = scales[r] > 0 ? scales[r] : INFINITY;
    }
    return true;
}

/* -- numbers ----------------------------------------------------------------------------------- */

/* The quotient has no fraction when 1.5 * 2^23 was added: it is in the lowest bits. Of the least
 * floats, whose 127th part is not exact, it may be beyond 127. */
static inline int32_t rounded(float x, float divisor)
{
    int32_t q = bits_of(x / divisor + 12582912.0f) - 0x4b400000;

    q = q > -MOST ? q : -MOST;
    return q < MOST ? q : MOST;
}

void cpu_lora8_round(float *x, const float *divisors, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)rounded(x[i], divisors[i]);
}

static void to_bytes(const float *x, const float *divisors, int64_t n, int8_t *out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = (int8_t)rounded(x[i], divisors[i]);
}

static void row_to_bytes(const float *x, float divisor, int64_t n, int8_t *out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = (int8_t)rounded(x[i], divisor);
}

void cpu_lora8_pack(const cpu_kernels *kernels, const cpu_matrix *m, const cpu_lora8 *source,
                    int64_t panel, float *values)
{
    int64_t first = panel * PANEL, n = m->rows - first < PANEL ? m->rows - first : PANEL;
    int8_t *bytes = (int8_t *)(values + m->cols * (source->by_columns ? PANEL : 1));
    const uint8_t *rows[PANEL] = {NULL};
    cpu_row at = cpu_source_row(&source->from, first);

    if (source->by_columns) { /* neighbours */
        cpu_to_floats(kernels, at.dtype, at.data, values, n * m->cols);
        to_bytes(values, source->divisors, n * m->cols, bytes);
    }
    for (int64_t r = 0; r < n; r++) {
        int8_t *to = bytes + r * m->cols;

        rows[r] = (const uint8_t *)to;
        if (source->by_columns)
            continue;
        at = cpu_source_row(&source->from, first + r);
        cpu_to_floats(kernels, at.dtype, at.data, values, m->cols);
        row_to_bytes(values, source->divisors[first + r], m->cols, to);
    }
    kernels->interleave(rows, 1, m->cols, m->data + (size_t)panel * m->panel_bytes);
}
