/*
 * bench.h: what the parts of the CUDA device's benchmark share. A part is a run of the program of
 * its own, so that one that fails leaves the others their numbers; what they are compared with,
 * the ceilings, is measured first and kept in a file.
 *
 * The same sources over test/simt are a test of themselves: with small sizes they run everywhere.
 */
#ifndef OL_TEST_BENCH_H
#define OL_TEST_BENCH_H

#include "stack.h"

#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct bench_sizes {
    int layers, hidden, heads, kv_heads, dim, ffn, vocab;
    int batch, past; /* of decoding together, and after how many tokens */
    int prefill;     /* rows of one prompt */
    int long_past;
    int rank;
    int prompt; /* rows of the first step after an adapter has come */
    int product;
    size_t copy_bytes, host_bytes;
    int repeat;
} bench_sizes;

/* What the machine can do. */
typedef struct bench_ceilings {
    double copy;    /* bytes a second, read and written, of a copy on the device */
    double host;    /* bytes a second, from pinned memory to the device */
    double product; /* operations a second of a large bf16 product by cuBLASLt; 0: not measured */
} bench_ceilings;

extern bench_sizes bench;

/* -- bench.c ------------------------------------------------------------------------------ */
void bench_die(const char *what, const char *why);

extern ol_error bench_error;
#define OK(expr)                                                                                   \
    do {                                                                                           \
        if ((expr) != OL_OK)                                                                       \
            bench_die(#expr, bench_error.detail[0] ? bench_error.detail : bench_error.message);    \
    } while (0)
#define CUDA(expr)                                                                                 \
    do {                                                                                           \
        cudaError_t cuda_code_ = (expr);                                                           \
        if (cuda_code_ != cudaSuccess)                                                             \
            bench_die(#expr, cudaGetErrorString(cuda_code_));                                      \
    } while (0)

/* A line of the closing table: ratio = measured / ceiling (none when that is 0), which is to be at
 * least `goal`, or with a negative one at most -goal. 0: no goal. */
typedef struct bench_line {
    const char *unit;
    double measured, ceiling, goal;
} bench_line;
void bench_row(const bench_line *line, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

double bench_now(void);
double bench_median(double *v, int n); /* sorts it */

/* Times `what` by events of the device: the median of bench.repeat, after three. Seconds. */
double bench_time(void (*what)(void *context, cudaStream_t stream), void *context);
cudaStream_t bench_stream(void);

/* Random bf16 numbers, small; at least n of them. Host memory. */
const uint16_t *bench_numbers(size_t n);

/* -- the parts ----------------------------------------------------------------------------- */
bench_ceilings bench_measure_ceilings(void);      /* bench_ceilings.c */
void bench_attention(const bench_ceilings *most); /* bench_attention.c */
void bench_decode(const bench_ceilings *most);    /* bench_steps.c */
void bench_adapters(const bench_ceilings *most);
void bench_prefill(const bench_ceilings *most);
void bench_prefill_ways(const bench_ceilings *most);
void bench_loading(const bench_ceilings *most);

/* -- bench_model.c: a model of random numbers on the device, behind device.h ---------------- */
typedef struct bench_model {
    stack on;
    float *inv_freq;
} bench_model;

void bench_open(bench_model *m, ol_quantization how);
void bench_open_with(bench_model *m, ol_quantization how, ol_quantization adapters);
void bench_close(bench_model *m);
/* Of all modules. bytes: bench_lora_bytes(rank) of the host with its matrices, one behind the
 * other; or NULL. */
ol_lora *bench_lora(bench_model *m, int rank, const void *bytes);
size_t bench_lora_bytes(int rank);
/* Of all layers' linear modules; and of the head. */
double bench_parameters(void);
double bench_head_parameters(void);

/* A step: n_seqs sequences that go on by n_rows each, after `past` tokens. */
typedef struct bench_load {
    int n_seqs, n_rows, past;
    ol_lora *const *loras; /* NULL: none; else one a sequence */
} bench_load;
void bench_step(bench_model *m, const bench_load *load);
/* Seconds of one by the clock: the median of bench.repeat, after three. */
double bench_step_time(bench_model *m, const bench_load *load);

#endif
