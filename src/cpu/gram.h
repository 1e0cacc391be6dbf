/* gram.h: B'B of an adapted module: |B h|^2 = h' gram h, so that measuring a row costs rank^2. */
#ifndef OL_CPU_GRAM_H
#define OL_CPU_GRAM_H

#include "cpu/core.h"
#include "cpu/lora8.h"

/* Floats that are needed as `values`. */
size_t cpu_gram_values(size_t rank);
/* part->gram, of B's numbers as they are stored. */
void cpu_gram_make(const cpu_kernels *kernels, const cpu_lora_part *part, const cpu_lora8 *b,
                   float *values);

#endif
