/* kernels_portable.c: the kernels in plain C. */
#include "cpu/vec_portable.h"

#define VEC_NAME portable
#include "cpu/kernels.inc"
