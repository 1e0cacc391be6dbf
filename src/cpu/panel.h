/*
 * panel.h: how the CPU device stores matrices, and the kernels of an instruction set.
 *
 * A matrix (rows = outputs, cols = inputs k) is cut into panels of 16 outputs; a
 * panel lies contiguously, k outermost, so that a kernel streams it once and keeps
 * 16 outputs in a vector register:
 *
 *   PANEL_F32   float [cols][16]
 *   PANEL_F16   half  [cols][16]    (PANEL_BF16 likewise)
 *   PANEL_BYTES int8  [cols][16]    of adapters: a weight is the number itself, scales are
 *                                   whoever multiplies' to apply (lora8.c)
 *   PANEL_I8    per 64 k: u8 [16][16][4] (k = 4 g + i; value + 128), then half
 *               scale[2][16], one per 32 k: 1088 bytes. The bytes are an AMX B tile.
 *   PANEL_I4    per 64 k: two times u8 [4][16][4], low nibbles k = 4 g + i, high
 *               nibbles k = 16 + 4 g + i (value + 8), then half scale[2][16]: 576 bytes
 *   PANEL_I4M   the same with value 0..15 and, after the scales, half min[2][16]: a
 *               weight is scale * value - min: 640 bytes
 *
 * Outputs beyond the last row are zero weights. For block panels cols is a multiple
 * of 32; an odd last block leaves half of its 64 unused. Everything that a vector
 * loads is aligned to its size.
 *
 * Arithmetic. Plain panels: acc = fma(w[k], x[k], acc) in float, k ascending. Block
 * panels: the inputs are quantised per row and block of 32 to int8 with a float
 * scale; per block the integer dot product is exact, then
 * acc = fma(float(dot), w_scale * x_scale, acc), blocks ascending. Both orders depend
 * on nothing but cols: promise P6. The portable set is the oracle: it multiplies
 * inputs as they are by the weights as panel.h defines them.
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
    PANEL_BYTES,
    PANEL_I8,
    PANEL_I4,
    PANEL_I4M,
} cpu_panel_kind;

#define PANEL_KINDS 7

typedef struct cpu_matrix {
    cpu_panel_kind kind;
    int64_t rows, cols;
    size_t panel_bytes; /* of one panel */
    uint8_t *data;      /* panels, 64-byte aligned */
} cpu_matrix;

static inline bool cpu_kind_is_block(cpu_panel_kind kind)
{
    return kind >= PANEL_I8;
}

static inline int64_t cpu_panels(const cpu_matrix *m)
{
    return (m->rows + PANEL - 1) / PANEL;
}

/* Where block b of a panel lies: its bytes, its scales, its minima (I4M). */
static inline size_t cpu_pair_bytes(cpu_panel_kind kind)
{
    return kind == PANEL_I8 ? 1088 : kind == PANEL_I4 ? 576 : 640;
}

static inline size_t cpu_block_at(cpu_panel_kind kind, int64_t b)
{
    return (size_t)(b >> 1) * cpu_pair_bytes(kind) +
           (size_t)(b & 1) * (kind == PANEL_I8 ? 512 : 256);
}

static inline size_t cpu_scale_at(cpu_panel_kind kind, int64_t b)
{
    return (size_t)(b >> 1) * cpu_pair_bytes(kind) + (kind == PANEL_I8 ? 1024 : 512) +
           (size_t)(b & 1) * 2 * PANEL;
}

static inline size_t cpu_min_at(int64_t b)
{
    return cpu_scale_at(PANEL_I4M, b) + 4 * PANEL;
}

/* Input rows, quantised for block panels. Rows are cut into tiles of at most
 * CPU_TILE, as even as can be; a tile of R rows is, per block,
 *     int8 q[8][R][4] (k = 4 g + i), float scale[R], int32 sum[R] (of the q)
 * so that a kernel walks it with one pointer. */
#define CPU_TILE 6
#define CPU_TILE_BYTES 40 /* per row and block */

typedef struct cpu_tiles {
    int n;          /* rows */
    int64_t blocks; /* cols / 32 */
    uint8_t *data;
} cpu_tiles;

static inline int cpu_tile_count(int n)
{
    return (n + CPU_TILE - 1) / CPU_TILE;
}

/* First row of tile t of n rows; of tile cpu_tile_count(n): n. */
static inline int cpu_tile_row(int n, int t)
{
    int count = cpu_tile_count(n), size = n / count, larger = n % count;

    return t * size + (t < larger ? t : larger);
}

static inline uint8_t *cpu_tile_at(const cpu_tiles *tiles, int row)
{
    return tiles->data + (size_t)row * (size_t)tiles->blocks * CPU_TILE_BYTES;
}

/* One multiplication, for n rows and the outputs of panels [from, to):
 *     y[r][16 (panel - from) + i] = sum_k w[i][k] x[r][k] + bias[i]
 * or, with `add`, added to what is there, one product at a time. */
typedef struct cpu_product {
    const cpu_matrix *m;
    int64_t from, to;
    int n;
    const float *x; /* plain panels, and all panels of the portable set */
    int64_t ldx;
    const int32_t *x_rows;  /* row r is x_rows[r] of x; NULL: r */
    const cpu_tiles *tiles; /* block panels */
    float *y;
    int64_t ldy;
    const int32_t *y_rows;
    const float *bias; /* of output 0 of the matrix, padded to panels; NULL: none */
    bool add;
} cpu_product;

static inline const float *cpu_product_x(const cpu_product *p, int row)
{
    return p->x + (p->x_rows ? p->x_rows[row] : row) * p->ldx;
}

static inline float *cpu_product_y(const cpu_product *p, int row)
{
    return p->y + (p->y_rows ? p->y_rows[row] : row) * p->ldy;
}

/* Keys and values lie in pages, per layer, page and kv head as
 *     k[page_tokens / 16][dim][16], v[page_tokens][dim]
 * so that 16 tokens' scores, and 16 dims of a sum of values, fill a vector. */
#define KV_GRAIN 16
/* Softmax is renormalised once per block of tokens; blocks start at multiples. */
#define ATTENTION_BLOCK 64
#define ATTENTION_QUERIES 64 /* rows x heads of a tile at most */

/* Queries that share a kv head: `rows` adjacent rows of a sequence by `heads`. */
typedef struct cpu_attention_tile {
    int rows, heads, dim;
    int first_pos; /* of the first row */
    int window;    /* 0: none */
    float scale;
    const float *q; /* row stride ldq, head stride dim */
    int64_t ldq;
    float *o;
    int64_t ldo;
    ol_dtype dtype;
    int page_tokens;
    const uint8_t *base; /* of this layer and kv head in page 0; v_offset to the values */
    size_t page_stride, v_offset;
    const int32_t *pages;
    float *scratch; /* cpu_attention_scratch() floats, aligned */
} cpu_attention_tile;

static inline size_t cpu_attention_scratch(int dim)
{
    size_t padded = ((size_t)dim + PANEL - 1) / PANEL * PANEL;

    return 2 * ATTENTION_BLOCK * padded + 2 * ATTENTION_QUERIES * padded +
           ATTENTION_QUERIES * (ATTENTION_BLOCK + PANEL + 2);
}

typedef struct cpu_kernels {
    const char *name;
    void (*multiply[PANEL_KINDS])(const cpu_product *product);
    /* `rows` rows of one tile, blocks [0, blocks) of each x; NULL: block panels take
     * the inputs as they are. */
    void (*quantize)(const float *const *x, int rows, int64_t blocks, uint8_t *tile);
    float (*square_sum)(const float *x, int64_t n);
    /* y[i] = x[i] * scale * w[i] */
    void (*scale_by)(const float *x, float scale, const float *w, float *y, int64_t n);
    void (*add)(const float *x, float *y, int64_t n); /* y += x */
    void (*swiglu)(float *gate, const float *up, int64_t n);
    /* Pairs (i, i + half), or (2 i, 2 i + 1): x rotated by (cosine[i], sine[i]). */
    void (*rotate)(float *x, const float *cosine, const float *sine, int half, bool interleaved);
    void (*to_half)(ol_dtype dtype, const float *x, uint16_t *out, int64_t n); /* F16, BF16 */
    void (*from_half)(ol_dtype dtype, const uint16_t *x, float *out, int64_t n);
    void (*attention)(const cpu_attention_tile *tile);
    /* A plain panel: out[k][lane] = rows[lane][k], n of `size` (1, 2 or 4) bytes each. A NULL row
     * is zeros. */
    void (*interleave)(const uint8_t *const *rows, size_t size, int64_t n, uint8_t *out);
    /* sums[i][j] += the sum over n rows of x[i] x[j], rows ascending, at least for j >= i. Rows
     * are ld floats, a multiple of 16, as are those of sums. */
    void (*gram)(const float *x, int64_t n, int64_t ld, float *sums);
} cpu_kernels;

/* The best set that the processor has, at most `isa` (NULL, "auto": no bound). Fails
 * on an unknown name and on one that the processor lacks. */
ol_code cpu_kernels_choose(const char *isa, const cpu_kernels **kernels, ol_error *err);
extern const cpu_kernels cpu_kernels_portable;
#if defined(__x86_64__)
extern const cpu_kernels cpu_kernels_avx2, cpu_kernels_avxvnni, cpu_kernels_avx512;
#endif

#endif
