/* matrix.h: matrices in panels: made from rows of any type, read back by the row. */
#ifndef OL_CPU_MATRIX_H
#define OL_CPU_MATRIX_H

#include "cpu/panel.h"
#include "device/device.h"

/* Which panels a matrix of this type becomes. Quantising a plain matrix needs
 * cols % 32 == 0; otherwise it keeps its type. */
cpu_panel_kind cpu_matrix_kind(ol_dtype dtype, int64_t cols, ol_quantization quantization);

/* Sets all but `data`; returns the bytes that it needs, or SIZE_MAX. */
size_t cpu_matrix_shape(cpu_matrix *m, cpu_panel_kind kind, int64_t rows, int64_t cols);

/* Where rows come from: `rows`, or when that is NULL, adjacent from `data`. */
typedef struct cpu_row {
    const void *data;
    ol_dtype dtype;
} cpu_row;

typedef struct cpu_source {
    const cpu_row *rows;
    const uint8_t *data;
    ol_dtype dtype;
    size_t row_bytes;
} cpu_source;

cpu_row cpu_source_row(const cpu_source *source, int64_t row);
/* n values as floats. */
void cpu_to_floats(const cpu_kernels *kernels, ol_dtype dtype, const void *data, float *out,
                   int64_t n);
/* Fills one panel: of anything when it is plain (but bytes: lora8.h), else of zeroed memory.
 * `values` is room for a row of floats. */
void cpu_matrix_pack(const cpu_kernels *kernels, const cpu_matrix *m, const cpu_source *source,
                     int64_t panel, float *values);
/* Row `row` as floats. */
void cpu_matrix_row(const cpu_matrix *m, int64_t row, float *out);

#endif
