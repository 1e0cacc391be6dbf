/* lora8.h: adapters in eight bits: numbers of -127 .. 127 with a scale for each rank, which is a
 * row of A and a column of B: B A x = sum over ranks of b_r * (scale * a_r x), scale = A's times
 * B's. So panels hold nothing but numbers, and h is scaled where it is made. */
#ifndef OL_CPU_LORA8_H
#define OL_CPU_LORA8_H

#include "cpu/matrix.h"

/* A or B while it is packed. divisors: of each row, or (B) of each number of PANEL rows. */
typedef struct cpu_lora8 {
    cpu_source from;
    bool by_columns; /* B */
    const float *divisors;
} cpu_lora8;

/* Numbers of PANEL rows of B have so many divisors. */
static inline size_t cpu_lora8_divisors(size_t rank)
{
    return PANEL * rank;
}

/* Floats that the functions here need as `values` for A; for B a Gram matrix needs more. */
size_t cpu_lora8_values(size_t cols);
/* scales[i] = the largest magnitude of t's row (or column) i / 127, and what numbers are divided
 * by: that, or where it is zero infinity. False: a number is not finite. */
bool cpu_lora8_measure(const cpu_kernels *kernels, const ol_tensor *t, bool by_columns,
                       float *scales, float *divisors, float *values);
/* n numbers, each divided by its own, to -127 .. 127, nearest even. */
void cpu_lora8_round(float *x, const float *divisors, int64_t n);
void cpu_lora8_pack(const cpu_kernels *kernels, const cpu_matrix *m, const cpu_lora8 *source,
                    int64_t panel, float *values);

#endif
