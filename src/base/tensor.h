/*
 * tensor.h: how a tensor lies in host memory, and the storage types of weights.
 *
 * A matrix is row-major, rows = output features, cols = input features (the
 * contiguous dimension, which GGUF calls ne[0]). Block types hold OL_BLOCK
 * columns (K types OL_SUPERBLOCK) per block, in ggml's byte layout.
 */
#ifndef OL_BASE_TENSOR_H
#define OL_BASE_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OL_MAX_DIMS 4
#define OL_BLOCK 32
#define OL_SUPERBLOCK 256

typedef enum ol_dtype {
    OL_F32,
    OL_F16,
    OL_BF16,
    OL_F8E4M3, /* keys and values alone; 0x7f and 0xff are NaN */
    OL_Q8_0,   /* 32 x int8, one f16 scale: 34 bytes */
    OL_Q4_0,   /* 32 x 4 bit, value - 8, one f16 scale: 18 bytes */
    OL_Q4_K,   /* 256 x 4 bit, 8 x (6-bit scale, 6-bit min), f16 d and dmin: 144 bytes */
    OL_Q6_K,   /* 256 x 6 bit, 16 x int8 scale, f16 d: 210 bytes */
} ol_dtype;

#define OL_DTYPE_COUNT 8

/* A view; the bytes belong to whoever mapped or made them. */
typedef struct ol_tensor {
    const char *name; /* for error messages; never NULL */
    ol_dtype dtype;
    int n_dims;
    int64_t shape[OL_MAX_DIMS]; /* outermost first; a matrix is {rows, cols} */
    const void *data;
    size_t bytes;
} ol_tensor;

const char *ol_dtype_name(ol_dtype dtype);
/* Elements per block (1 for plain types), and bytes per block. */
int ol_dtype_block(ol_dtype dtype);
size_t ol_dtype_block_bytes(ol_dtype dtype);
/* Bytes of a row of `cols` elements. False when cols is negative, does not
 * divide into blocks, or overflows. */
bool ol_dtype_row_bytes(ol_dtype dtype, int64_t cols, size_t *bytes);
/* Elements of a shape; false when a dimension is negative or on overflow. */
bool ol_shape_count(const int64_t *shape, int n_dims, int64_t *count);

/* Plain conversions, the meaning of every type. `n` must be a whole number of
 * blocks; src need not be aligned. */
void ol_dequantize(ol_dtype dtype, const void *src, float *dst, size_t n);
/* Round-to-nearest-even. */
uint16_t ol_f32_to_bf16(float f);
uint16_t ol_f32_to_f16(float f);
float ol_f16_to_f32(uint16_t h);
float ol_f8_to_f32(uint8_t v);

static inline float ol_bf16_to_f32(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t)h << 16};

    return v.f;
}

#endif
