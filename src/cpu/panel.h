/*
 * panel.h: how the CPU device stores matrices, and the kernels of an instruction set.
 *
 * A matrix (rows = outputs, cols = inputs k) is cut into panels of 16 outputs; a
 * panel lies contiguously, k outermost, so that a kernel streams it once and keeps
 * 16 outputs in a vector register:
 *
 *   PANEL_F32   float [cols][16]
 *   PANEL_F16   half  [cols][16]    (PANEL_BF16 likewise)
 *   PANEL_I8    per block of 32 k: u8 [8][16][4] (k = 4 g + i; value + 128),
 *               then half scale[16]: 544 bytes. [8][16][4] is an AMX B tile.
 *   PANEL_I4    per block of 32 k: u8 [4][16][4], low nibbles k = 4 g + i, high
 *               nibbles k = 16 + 4 g + i (value + 8), then half scale[16]: 288 bytes
 *   PANEL_I4M   the same with value 0..15 and, after the scales, half min[16]: a
 *               weight is scale * value - min: 320 bytes
 *
 * Outputs beyond the last row are zero weights. For block panels cols is a multiple
 * of 32.
 *
 * Arithmetic. Plain panels: acc = fma(w[k], x[k], acc) in float, k ascending. Block
 * panels: the inputs are quantised per row and block of 32 to int8 with a float
 * scale; per block the integer dot product is exact, then
 * acc = fma(float(dot) * w_scale, x_scale, acc), blocks ascending. Both orders depend
 * on nothing but cols: promise P6.
 */
#ifndef OL_CPU_PANEL_H
#define OL_CPU_PANEL_H

#include "base/status.h"
#include "base/tensor.h"

#define PANEL 16

typedef enum cpu_panel_kind {
    PANEL_F32,
    PANEL_F16,
    PANEL_BF16,
    PANEL_I8,
    PANEL_I4,
    PANEL_I4M,
} cpu_panel_kind;

#define PANEL_KINDS 6

typedef struct cpu_matrix {
    cpu_panel_kind kind;
    int64_t rows, cols;
    size_t panel_bytes; /* of one panel */
    uint8_t *data;      /* panels, 64-byte aligned */
    size_t bytes;       /* mapped for data */
} cpu_matrix;

static inline bool cpu_kind_is_block(cpu_panel_kind kind)
{
    return kind >= PANEL_I8;
}

static inline int64_t cpu_panels(const cpu_matrix *m)
{
    return (m->rows + PANEL - 1) / PANEL;
}

/* Rows of inputs, prepared for block panels. Arrays hold `rows` rows of `cols` and of
 * cols / 32 elements. */
typedef struct cpu_quants {
    int64_t cols;
    int8_t *q;
    float *scale;
    int32_t *sum;
} cpu_quants;

/* One multiplication: y[r][i] (+)= sum_k w[i][k] x[r][k] for rows [0, n) and the
 * outputs of panels [from, to). */
typedef struct cpu_product {
    const cpu_matrix *m;
    int64_t from, to;
    const float *x; /* plain panels; row stride ldx */
    int64_t ldx;
    cpu_quants quants; /* block panels */
    int n;
    float *y;
    int64_t ldy;
    bool add;
} cpu_product;

/* Tokens of a block of attention: a multiple of the largest vector, at most a page
 * border apart. Softmax is renormalised once per block. */
#define ATTENTION_BLOCK 64
#define ATTENTION_QUERIES 8

/* Keys and values of one kv head in one page: k[dim][page_tokens], v[page_tokens][dim]. */
typedef struct cpu_kv_page {
    const void *k, *v;
} cpu_kv_page;

/* A tile of queries that share a kv head: at most ATTENTION_QUERIES. */
typedef struct cpu_attention_tile {
    int n;
    const float *q[ATTENTION_QUERIES]; /* [dim], scaled */
    float *o[ATTENTION_QUERIES];       /* [dim], out */
    int first[ATTENTION_QUERIES];      /* first visible position */
    int last[ATTENTION_QUERIES];       /* own position */
    int dim, page_tokens;
    ol_dtype dtype;
    /* base + page * page_stride: k of this head, then v */
    const uint8_t *base;
    size_t page_stride, v_offset;
    const int32_t *pages;
} cpu_attention_tile;

typedef struct cpu_kernels {
    const char *name;
    void (*multiply[PANEL_KINDS])(const cpu_product *product);
    void (*quantize)(const float *x, int64_t cols, int8_t *q, float *scale, int32_t *sum);
    float (*square_sum)(const float *x, int64_t n);
    /* y[i] = x[i] * scale * w[i] */
    void (*scale_by)(const float *x, float scale, const float *w, float *y, int64_t n);
    void (*add)(const float *x, float *y, int64_t n); /* y += x */
    void (*swiglu)(float *gate, const float *up, int64_t n);
    void (*attention)(const cpu_attention_tile *tile);
} cpu_kernels;

/* The best set that the processor has, at most `isa` (NULL, "auto": no bound). Fails
 * on an unknown name and on one that the processor lacks. */
ol_code cpu_kernels_choose(const char *isa, const cpu_kernels **kernels, ol_error *err);
extern const cpu_kernels cpu_kernels_portable;
#if defined(__x86_64__)
extern const cpu_kernels cpu_kernels_avx2, cpu_kernels_avx512;
#endif

#endif
