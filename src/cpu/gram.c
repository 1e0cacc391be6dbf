/* gram.c: see gram.h. */
#include "cpu/gram.h"

#include <string.h>

static size_t padded(size_t rank)
{
    return (rank + PANEL - 1) / PANEL * PANEL;
}

/* Rows of B that are taken at once: they stay in the nearest cache. */
static size_t rows_at_once(size_t rank)
{
    return rank < 512 ? 4096 / padded(rank) : 8;
}

/* Some rows, and sums. */
size_t cpu_gram_values(size_t rank)
{
    return padded(rank) * (rows_at_once(rank) + padded(rank));
}

/* n rows from number `row` on, ld floats each: those beyond the rank are left alone. */
static void read_rows(const cpu_kernels *kernels, const cpu_lora8 *b, size_t row, size_t n,
                      size_t rank, float *values)
{
    const cpu_source *from = &b->from;
    const uint8_t *src = from->data + row * from->row_bytes;
    size_t ld = padded(rank), most = ld == rank ? PANEL : 1;

    if (ld == rank)
        cpu_to_floats(kernels, from->dtype, src, values, (int64_t)(n * rank));
    else
        for (size_t r = 0; r < n; r++)
            cpu_to_floats(kernels, from->dtype, src + r * from->row_bytes, values + r * ld,
                          (int64_t)rank);
    for (size_t r = 0; b->divisors && r < n; r += most)
        cpu_lora8_round(values + r * ld, b->divisors,
                        (int64_t)((n - r < most ? n - r : most) * rank));
}

void cpu_gram_make(const cpu_kernels *kernels, const cpu_lora_part *part, const cpu_lora8 *b,
                   float *values)
{
    size_t rank = (size_t)part->rank, ld = padded(rank), most = rows_at_once(rank);
    size_t rows = (size_t)part->b.rows;
    float *sums = values + most * ld;

    memset(values, 0, cpu_gram_values(rank) * sizeof(float));
    for (size_t row = 0; row < rows; row += most) {
        size_t n = rows - row < most ? rows - row : most;

        read_rows(kernels, b, row, n, rank, values);
        kernels->gram(values, (int64_t)n, (int64_t)ld, sums);
    }
    for (size_t i = 0; i < rank; i++)
        for (size_t j = 0; j < rank; j++)
            part->gram[i * rank + j] = i <= j ? sums[i * ld + j] : sums[j * ld + i];
}
