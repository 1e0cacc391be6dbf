/* kernels_avx2.c: the kernels for AVX2, FMA and F16C. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#include "cpu/vec_avx2.h"

#define VEC_NAME avx2
#include "cpu/kernels.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
