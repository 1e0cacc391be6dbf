/* matrix.h: matrices in panels: made from tensors, read back by the row. */
#ifndef OL_CPU_MATRIX_H
#define OL_CPU_MATRIX_H

#include "cpu/panel.h"
#include "cpu/pool.h"
#include "device/device.h"

/* Which panels a matrix of this type becomes. Quantising a plain matrix needs
 * cols % 32 == 0; otherwise it keeps its type. */
cpu_panel_kind cpu_matrix_kind(ol_dtype dtype, int64_t cols, ol_quantization quantization);
size_t cpu_matrix_bytes(cpu_panel_kind kind, int64_t rows, int64_t cols);

/* Packs `tensor` (a matrix) with the pool's threads. */
ol_code cpu_matrix_create(cpu_pool *pool, const ol_tensor *tensor, cpu_panel_kind kind,
                          cpu_matrix *m, ol_error *err);
void cpu_matrix_free(cpu_matrix *m);
/* Row `row` as floats. */
void cpu_matrix_row(const cpu_matrix *m, int64_t row, float *out);

#endif
