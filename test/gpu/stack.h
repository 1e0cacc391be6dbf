/*
 * stack.h: a model's layers on a device, driven through device.h as the engine drives them: what
 * the tests' models and the benchmark's have in common. Both place weights of their own.
 */
#ifndef OL_TEST_GPU_STACK_H
#define OL_TEST_GPU_STACK_H

#include "base/status.h"
#include "device/device.h"

/* The CUDA device's table, linked into the program. */
const ol_device_table *ol_device_entry_point(void);

typedef struct stack_shape {
    int layers, hidden, heads, kv_heads, dim, ffn, vocab, rotary, window, page_tokens;
    bool interleaved, bias, qk_norm, tied;
} stack_shape;

/* Numbers that module `m` takes for a row, and that it gives. */
int64_t stack_in(const stack_shape *s, int m);
int64_t stack_out(const stack_shape *s, int m);

typedef struct stack {
    const ol_device_table *t;
    ol_device *device;
    stack_shape s;
    ol_weight *embedding, *head, *norm; /* the head may be the embedding */
    ol_layer *layers;                   /* [s.layers]; their norms may be `norm` */
    ol_kv *kv;
    ol_buffer *x, *y, *q, *o;
} stack;

/* What makes the attention of a layer of this shape; inv_freq: [rotary / 2], kept. */
ol_attention stack_attention(const stack_shape *s, const float *inv_freq);
/* Pages of keys and values, beside adapters if `pool`. */
ol_code stack_open_pages(stack *m, int n_pages, ol_dtype dtype, bool pool, ol_error *err);
ol_code stack_open_buffers(stack *m, ol_error *err);
/* Frees what was placed, and closes the device; `layers` stays the caller's. */
void stack_close(stack *m);

/* What a step gives: choices where it has picks, else logits. */
typedef struct stack_result {
    const float *logits;
    const ol_choice *choices;
} stack_result;
ol_code stack_forward(const stack *m, const ol_step *step, stack_result *result, ol_error *err);

#endif
