/* linear_int4.cu: the product with INT4 weights. */
#include "kernels/linear_kind.cuh"

/* Every warp of few reads x for itself: with more rows that is more than the weights. */
const linear_kernels linear_int4 = LINEAR_KERNELS(GPU_INT4, 4);
