/*
 * rig.h: what the device tests share: random weights with their float64 meaning, a
 * small model on a device, and the same operations in float64.
 *
 * The tests link the CPU device's objects, so that they can put anything into a buffer
 * and read pages back; everything else goes through the table, as in the engine.
 */
#ifndef OL_TEST_DEVICE_RIG_H
#define OL_TEST_DEVICE_RIG_H

#include "cpu/core.h"
#include "device/device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

const ol_device_table *ol_device_entry_point(void);

/* -- random numbers ----------------------------------------------------------------- */
typedef struct rig_rng {
    uint64_t state;
} rig_rng;

uint64_t rig_next(rig_rng *rng);
int rig_below(rig_rng *rng, int n); /* 0 .. n - 1 */
double rig_uniform(rig_rng *rng);   /* [-1, 1) */
void rig_fill(rig_rng *rng, float *x, size_t n, double scale);

/* -- weights -------------------------------------------------------------------------- */
typedef struct rig_tensor {
    ol_tensor t;
    double *dense; /* what the bytes mean */
} rig_tensor;

/* rows x cols, entries of about `scale`. cols must suit the type. */
rig_tensor rig_matrix(rig_rng *rng, ol_dtype dtype, int64_t rows, int64_t cols, double scale);
rig_tensor rig_vector(rig_rng *rng, int64_t n, double mean, double scale);
void rig_tensor_free(rig_tensor *t);

typedef struct rig_shape {
    int hidden, heads, kv_heads, dim, ffn, vocab;
    int rotary; /* 0: dim */
    bool interleaved, bias, qk_norm;
    int window, page_tokens;
} rig_shape;

/* One layer type; `layers` of them with weights of their own. */
#define RIG_LAYERS 2

typedef struct rig_model {
    rig_shape shape;
    ol_dtype dtype;
    ol_quantization quantization;
    rig_tensor embedding, head, final_norm;
    rig_tensor linear[RIG_LAYERS][OL_MODULES], bias[RIG_LAYERS][OL_MODULES];
    rig_tensor attn_norm[RIG_LAYERS], mlp_norm[RIG_LAYERS], q_norm[RIG_LAYERS], k_norm[RIG_LAYERS];
    float inv_freq[128];
} rig_model;

typedef struct rig_lora {
    int rank[RIG_LAYERS][OL_MODULES]; /* 0: not adapted */
    float scale;
    rig_tensor a[RIG_LAYERS][OL_MODULES], b[RIG_LAYERS][OL_MODULES];
} rig_lora;

void rig_model_make(rig_model *m, const rig_shape *shape, ol_dtype dtype,
                    ol_quantization quantization, uint64_t seed);
void rig_model_free(rig_model *m);
/* Ranks of at most max_rank; some modules are left out when `sparse`. */
void rig_lora_make(rig_lora *lora, const rig_model *m, ol_dtype dtype, int max_rank, bool sparse,
                   uint64_t seed);
/* What the tensors mean becomes what eight bits with a scale for each rank make of them. */
void rig_lora_round(rig_lora *lora);
void rig_lora_free(rig_lora *lora);

int64_t rig_in(const rig_shape *s, int module);
int64_t rig_out(const rig_shape *s, int module);

/* -- on a device -------------------------------------------------------------------------- */
#define RIG_MAX_LORAS 8

typedef struct rig_device {
    const ol_device_table *ops;
    ol_device *device;
    const rig_model *model;
    ol_weight *embedding, *head, *final_norm;
    ol_layer layers[RIG_LAYERS];
    double *stored[RIG_LAYERS][OL_MODULES], *stored_head; /* weights as the device has them */
    ol_kv *kv;
    ol_buffer *x, *y, *q, *o;
    ol_lora *loras[RIG_MAX_LORAS];
    const rig_lora *lora_of[RIG_MAX_LORAS];
    int n_loras;
    int n_pages;
    bool pool;
    int32_t last_page; /* of a pool: from here on adapters have them */
} rig_device;

typedef struct rig_options {
    const char *isa;
    int threads, max_rows, n_pages;
    ol_dtype kv;
    bool tied;
    bool pool; /* adapters lie in pages, and all pages have NaNs in them before */
    bool int8; /* adapters in eight bits */
} rig_options;

void rig_place(rig_device *d, const rig_model *m, const rig_options *options);
void rig_place_lora(rig_device *d, const rig_lora *lora);
void rig_remove(rig_device *d);
/* Every float of a buffer becomes NaN. */
void rig_poison(rig_device *d, ol_buffer *buffer);
float *rig_row(const ol_buffer *buffer, int row);
/* Stored key or value as floats. */
void rig_peek(const ol_kv *kv, int layer, int page, int head, int slot, bool value, double *out);

/* Sets of instructions that this machine has, "portable" first; NULL ends the list. */
const char *const *rig_isas(void);
#define RIG_OK(expr) rig_ok((expr), &rig_error, #expr, __FILE__, __LINE__)
extern ol_error rig_error;
void rig_ok(ol_code code, const ol_error *err, const char *what, const char *file, int line);

/* -- float64 -------------------------------------------------------------------------------- */
/* Adds what `refs` add to row x for a module. */
void ref_linear(const rig_device *d, int layer, int module, const double *x,
                const ol_lora_ref *loras, int n_loras, double *y);
/* |weight * delta|^2 of one adapter. */
double ref_energy(const rig_device *d, int layer, int module, const double *x, ol_lora_ref lora);
void ref_norm(const double *x, const double *w, int64_t n, double eps, double *y);
void ref_rope(const rig_model *m, int pos, double *head);
/* out[dim] for one query at `pos` over stored keys and values; q unscaled. */
void ref_attention(const rig_device *d, int layer, const int32_t *pages, int pos, int head,
                   const double *q, double *out);

/* sqrt(sum (got - want)^2 / sum want^2), and the same of the worst element against the
 * root mean square; NaN counts as infinite. */
typedef struct rig_gap {
    double error, norm, worst;
    size_t n;
} rig_gap;

void rig_compare(rig_gap *gap, double got, double want);
void rig_check_gap(const rig_gap *gap, double rms, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
