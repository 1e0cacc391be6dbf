/* linear_fp8.cu: the product with FP8 weights. */
#include "kernels/linear_kind.cuh"

const linear_kernels linear_fp8 = LINEAR_KERNELS(GPU_FP8);
