/* merge_internal.h: what the files behind merge.h share. */
#ifndef OL_MERGE_INTERNAL_H
#define OL_MERGE_INTERNAL_H

#include "merge/merge.h"

/* One module of the result: a is {rank, in}, b is {out, rank}; malloc'ed. */
typedef struct merged {
    int layer;
    ol_module module;
    int rank;
    int64_t in, out;
    float *a, *b;
} merged;

/* The values of n tensors of the same size into one: pruned, and summed or elected. `key`
 * tells the tensor from others for random numbers. combine.c */
typedef struct combination {
    const ol_merge_options *options;
    int n;
    const float *const *values; /* [n][count] */
    const double *weights;
    size_t count;
    uint64_t key;
} combination;

ol_code merge_combine(const combination *c, float *out, ol_error *err);

/* The best product of `rank` for a matrix {out, in}, dense or as the product of b {out, k}
 * and a {k, in}. product.c */
ol_code merge_decompose(const float *dense, merged *m, ol_error *err);
ol_code merge_decompose_product(const float *b, const float *a, int k, merged *m, ol_error *err);

/* Clamps the values of both factors to their common quantile, and its negative, as PEFT does.
 * product.c */
ol_code merge_clamp(merged *m, double quantile, ol_error *err);

/* output.c */
ol_code merge_write(const merged *list, int n, ol_dtype dtype, ol_buf *weights, ol_buf *config,
                    ol_error *err);

#endif
