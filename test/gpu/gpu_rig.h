/*
 * gpu_rig.h: what the tests of kernels share: memory of the device with random or poisoned
 * contents, float64 numbers to compare with, and a step's lists.
 *
 * Linked against kernels/ compiled by nvcc the tests run on a GPU, against test/simt on the
 * processor.
 */
#ifndef OL_TEST_GPU_RIG_H
#define OL_TEST_GPU_RIG_H

#include "kernels/launch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Fails the test that runs. */
#define GPU_OK(expr) rig_cuda((expr), #expr, __FILE__, __LINE__)
void rig_cuda(cudaError_t code, const char *what, const char *file, int line);

/* -- random numbers -----------------------------------------------------------------------------
 * Another seed in each run (make check: in each commit), printed; OL_SEED=N repeats one.
 * OL_TEST=NAME runs one test. */
void rig_seed(void); /* of the run; call it first in main */
uint64_t rig_next(void);
int rig_below(int n);
/* All tests, with a seed; on the processor once for each order in which threads take turns. */
#define RIG_RUN_IN_ORDERS(tests) rig_run_in_orders(tests, sizeof(tests) / sizeof((tests)[0]))
int rig_run_in_orders(const struct CMUnitTest *tests, size_t n);
double rig_uniform(void); /* [-1, 1) */

/* On the processor, and where OL_SMALL is set, as for compute-sanitizer: sizes that have all kinds
 * of accesses, but no more of each than it takes. */
bool rig_small(void);

/* -- memory: freed by rig_free_all --------------------------------------------------------- */
void *rig_device(size_t bytes);                             /* poisoned: every 2 or 4 bytes a NaN */
void *rig_device_copy(const void *from, size_t bytes);      /* as given */
void rig_fetch(void *to, const void *device, size_t bytes); /* after all launched work */
void rig_put(void *device, const void *from, size_t bytes);
void rig_poison(void *device, size_t bytes);
void *rig_host(size_t bytes); /* zeroed */
void rig_free_all(void);
cudaStream_t rig_stream(void);

/* -- numbers --------------------------------------------------------------------------------- */
uint16_t rig_bf16(double v); /* to nearest even */
double rig_from_bf16(uint16_t v);
uint16_t rig_f16(double v);
double rig_from_f16(uint16_t v);
uint8_t rig_f8(double v); /* e4m3, to nearest even; beyond 448 it */
double rig_from_f8(uint8_t v);
/* Where dimension d of an FP8 key or value is in its row: kernels/README.md, pages. */
int rig_f8_place(int d);
/* n random bf16 numbers of about `scale`; *values, if not NULL, gets what they mean. */
uint16_t *rig_random_bf16(size_t n, double scale, double **values);
float *rig_random_f32(size_t n, double mean, double scale);

/* A rows x cols bf16 matrix in the order of fragments (kernels/README.md), for the host. */
uint16_t *rig_pack_bf16(const uint16_t *matrix, int rows, int cols, size_t *bytes);
/* An adapter's matrix of eight bits, A or B (by_columns), likewise. */
int8_t *rig_pack_lora8(const int8_t *matrix, int rows, int cols, bool by_columns, size_t *bytes);

/* -- comparing: by norm, and the worst element against the root mean square ----------------------
 * Of the worst only counts what is more than bf16 rounds off a number of its size: a few of many
 * may be a dozen times the root mean square. */
#define RIG_BF16                                                                                   \
    4e-3 /* of numbers rounded once: 2^-8 of each at most, and what f32 has lost before */
typedef struct rig_gap {
    double error, norm, worst;
    size_t n;
} rig_gap;
void rig_compare(rig_gap *gap, double got, double want); /* NaN counts as infinite */
/* A sum: what is lost is in proportion to its terms, which may cancel, and not to what is left of
 * them. `size`: the root of the sum of their squares. */
void rig_compare_sum(rig_gap *gap, double got, double want, double size);
void rig_check_gap(const rig_gap *gap, double rms, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
