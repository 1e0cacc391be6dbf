/* linear_bf16.cu: the product with BF16 weights. */
#include "kernels/linear_kind.cuh"

const linear_kernels linear_bf16 = LINEAR_KERNELS(GPU_BF16);
