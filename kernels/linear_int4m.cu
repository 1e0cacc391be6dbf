/* linear_int4m.cu: the product with INT4 weights that have offsets. */
#include "kernels/linear_kind.cuh"

const linear_kernels linear_int4m = LINEAR_KERNELS(GPU_INT4M);
