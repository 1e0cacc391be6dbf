/*
 * merge.h: several LoRA adapters made into one, as PEFT's add_weighted_adapter does it:
 * TIES (Yadav et al., 2023), DARE (Yu et al., 2024), pruning by magnitude, sums, and the
 * same over the products B A with a singular value decomposition afterwards.
 *
 * Differences from PEFT: a module has its own rank (no padding to the largest); the result's
 * scale is always 1 (PEFT keeps the first parent's use_rslora, which would change it);
 * DARE's random numbers are ours.
 */
#ifndef OL_MERGE_H
#define OL_MERGE_H

#include "base/buf.h"
#include "engine/formats/adapter_file.h"

#define OL_MERGE_MAX_PARENTS 64

typedef enum ol_merge_prune { OL_PRUNE_NONE, OL_PRUNE_MAGNITUDE, OL_PRUNE_RANDOM } ol_merge_prune;

typedef enum ol_merge_form {
    OL_MERGE_FACTORS, /* A with A and B with B: equal ranks, and an approximation */
    OL_MERGE_CAT,     /* beside each other: exact; the ranks add up */
    OL_MERGE_PRODUCT, /* the products, brought back to a rank by SVD */
} ol_merge_form;

typedef struct ol_merge_method {
    const char *name;
    ol_merge_prune prune;
    bool ties; /* signs are elected; else a sum */
    ol_merge_form form;
} ol_merge_method;

/* NULL: there is no such method. */
const ol_merge_method *ol_merge_method_named(const char *name);

typedef struct ol_merge_options {
    const ol_merge_method *method;
    double density;          /* part that pruning keeps, 0 to 1 */
    bool sign_by_count;      /* majority_sign_method = frequency; else total */
    int rank;                /* of products; 0: the largest rank of a parent's */
    double clamp;            /* of products: a quantile of the factors' values, 0 to 1; 0: none */
    uint64_t seed;           /* of what is pruned at random */
    ol_dtype dtype;          /* of the result: F32, F16 or BF16 */
    ol_progress_fn progress; /* told of each module; may be NULL */
    void *context;           /* the progress function's */
} ol_merge_options;

typedef struct ol_merge_parent {
    const char *name; /* for errors */
    const ol_adapter_file *file;
    double weight; /* finite; may be negative */
} ol_merge_parent;

/* What each parent has a part in what is merged: |weight| times the Frobenius norm of all its
 * scaled products B A. Of parents of a size that is their weights; of one that changes nothing
 * it is nothing, whatever its weight. OL_NOMEM. */
ol_code ol_merge_parts(const ol_merge_parent *parents, int n, double *parts, ol_error *err);

/* The bytes of adapter_model.safetensors and the text of adapter_config.json. Errors:
 * OL_MISMATCH (shapes, ranks), OL_INVALID (options), OL_LIMIT (rank), OL_NOMEM. */
ol_code ol_merge(const ol_merge_options *options, const ol_merge_parent *parents, int n,
                 ol_buf *weights, ol_buf *config, ol_error *err);

#endif
