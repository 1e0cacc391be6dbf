/* linear_int4.cu: the product with INT4 weights. */
#include "kernels/linear_kind.cuh"

const linear_kernels linear_int4 = LINEAR_KERNELS(GPU_INT4);
