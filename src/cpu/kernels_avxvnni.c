/* kernels_avxvnni.c: the kernels for AVX2, FMA, F16C and AVX-VNNI. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif
#define VEC_VNNI 1
#include "cpu/vec_avx2.h"

#define VEC_NAME avxvnni
#include "cpu/kernels.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
