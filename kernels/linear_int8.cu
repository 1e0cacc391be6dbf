/* linear_int8.cu: the product with INT8 weights. */
#include "kernels/linear_kind.cuh"

/* Every warp of few reads x for itself: with more rows that is more than the weights. */
const linear_kernels linear_int8 = LINEAR_KERNELS(GPU_INT8, 4);
