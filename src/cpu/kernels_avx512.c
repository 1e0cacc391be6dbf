/* kernels_avx512.c: the kernels for AVX-512 with VNNI. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c"))),             \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")
#endif
#include "cpu/vec_avx512.h"

#define VEC_NAME avx512
#include "cpu/kernels.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
