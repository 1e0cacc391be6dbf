/* bench_attention.h: see bench_attention.c. */
#ifndef OL_TEST_BENCH_ATTENTION_H
#define OL_TEST_BENCH_ATTENTION_H

#include <cuda_runtime.h>

/* A line of the closing table. */
typedef void bench_row(const char *fmt, ...);

/* copy: bytes read and written a second. */
void bench_attention(double copy, cudaStream_t stream, bench_row *row);

#endif
