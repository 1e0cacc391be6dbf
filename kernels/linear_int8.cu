/* linear_int8.cu: the product with INT8 weights. */
#include "kernels/linear_kind.cuh"

const linear_kernels linear_int8 = LINEAR_KERNELS(GPU_INT8);
