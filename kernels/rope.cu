/*
 * rope.cu: norms of heads, RoPE, and keys and values into their pages. See launch.h.
 *
 * A block has one row and some of its heads, those of q, of k and of v in the order of their
 * columns, a warp to a head. Angles are the row's: computed once a block, by sincosf and not by
 * the hardware's sine, whose error grows with the angle: positions go to a hundred thousand.
 */
#include "kernels/fp8.cuh"
#include "kernels/launch.h"

#define ROPE_WARPS 8
#define ROPE_HEADS 16 /* of a block */

/* Elements d and d + 1 of a head; 0 for those that it does not have. Where a head starts at an
 * odd element they are not one word. */
static __device__ uint32_t load_pair(const uint16_t *head, int d, int dim)
{
    const uint16_t *at = head + d;

    if (d + 1 < dim && (uintptr_t)at % 4 == 0)
        return *(const uint32_t *)at;
    return (d < dim ? (uint32_t)at[0] : 0) | (d + 1 < dim ? (uint32_t)at[1] << 16 : 0);
}

static __device__ void store_pair(uint16_t *head, int d, int width, uint32_t pair)
{
    uint16_t *at = head + d;

    if (d + 1 < width && (uintptr_t)at % 4 == 0) {
        *(uint32_t *)at = pair;
        return;
    }
    at[0] = (uint16_t)pair;
    if (d + 1 < width)
        at[1] = (uint16_t)(pair >> 16);
}

/* cos and sin of the row's angles, times the factor: [half] each. */
static __device__ void fill_angles(const gpu_rope &op, int pos, float *angles)
{
    int half = op.rotary_dims / 2;

    for (int i = (int)threadIdx.x; i < half; i += (int)blockDim.x) {
        float s, c;

        sincosf((float)pos * op.inv_freq[i], &s, &c);
        angles[i] = c * op.rope_factor;
        angles[half + i] = s * op.rope_factor;
    }
}

/* The head as f32, normalised if there is a norm, for all lanes of the warp to see. */
static __device__ void fetch_head(const gpu_rope &op, const uint16_t *head, const float *norm,
                                  float *x)
{
    int lane = (int)threadIdx.x % WARP, dim = op.kv.head_dim;
    float sum = 0, scale;

    for (int d = 2 * lane; d < dim; d += 2 * WARP) {
        uint32_t pair = load_pair(head, d, dim);
        float low = bf16_low(pair), high = bf16_high(pair);

        x[d] = low;
        if (d + 1 < dim)
            x[d + 1] = high;
        sum = fmaf(high, high, fmaf(low, low, sum));
    }
    if (norm) {
        scale = 1.0f / sqrtf(warp_sum(sum) / (float)dim + op.norm_eps);
        for (int d = 2 * lane; d < dim; d += 2 * WARP) {
            x[d] *= scale * norm[d];
            if (d + 1 < dim)
                x[d + 1] *= scale * norm[d + 1];
        }
    }
    __syncwarp();
}

/* Dimension d of the turned head; 0 beyond it. */
static __device__ float turned(const gpu_rope &op, const float *x, const float *angles, int d)
{
    int half = op.rotary_dims / 2, i;
    bool second;
    float other;

    if (d >= 2 * half)
        return d < op.kv.head_dim ? x[d] : 0;
    i = op.interleaved ? d / 2 : d < half ? d : d - half;
    second = op.interleaved ? d % 2 != 0 : d >= half;
    other = x[op.interleaved ? d ^ 1 : second ? i : d + half];
    if (second)
        return fmaf(other, angles[half + i], x[d] * angles[i]);
    return fmaf(-other, angles[half + i], x[d] * angles[i]);
}

/* The turned head's numbers 0 .. width - 1 as bf16. */
static __device__ void store_turned(const gpu_rope &op, const float *x, const float *angles,
                                    uint16_t *to, int width)
{
    for (int d = 2 * ((int)threadIdx.x % WARP); d < width; d += 2 * WARP)
        store_pair(to, d, width, bf16_pack(turned(op, x, angles, d), turned(op, x, angles, d + 1)));
}

/* -- into pages -----------------------------------------------------------------------------------
 * `row` of a head's page is a slot's key or, page_tokens further, its value. */

/* As FP8: README.md, pages. `number(d)` is dimension d, 0 beyond the head's. */
template <typename F>
static __device__ void store_fp8(const gpu_kv_layer &kv, uint8_t *page, int row, F number)
{
    uint16_t *to = (uint16_t *)(page + row * kv.dim_stride);
    int lane = (int)threadIdx.x % WARP;
    float most = 0, inverse;
    uint32_t exponent;

    for (int i = lane; i < kv.dim_stride / 2; i += WARP) {
        int d = i / 8 * 16 + i % 8;

        most = fmaxf(most, fmaxf(fabsf(number(d)), fabsf(number(d + 8))));
    }
    exponent = f8_exponent(warp_max(most));
    inverse = f8_inverse(exponent);
    for (int i = lane; i < kv.dim_stride / 2; i += WARP) {
        int d = i / 8 * 16 + i % 8;

        to[i] =
            (uint16_t)(f8_nearest(number(d + 8) * inverse) | f8_nearest(number(d) * inverse) << 8);
    }
    if (lane == 0)
        page[2 * kv.page_tokens * kv.dim_stride + row] = (uint8_t)exponent;
}

static __device__ void store_key(const gpu_rope &op, const float *x, const float *angles,
                                 uint8_t *page, int row)
{
    if (op.kv.fp8)
        store_fp8(op.kv, page, row, [&](int d) { return turned(op, x, angles, d); });
    else
        store_turned(op, x, angles, (uint16_t *)(page + row * gpu_kv_row_bytes(&op.kv)),
                     op.kv.dim_stride);
}

static __device__ void store_value(const gpu_kv_layer &kv, const uint16_t *head, uint8_t *page,
                                   int row)
{
    int dim = kv.head_dim;
    uint16_t *to = (uint16_t *)(page + row * gpu_kv_row_bytes(&kv));

    if (kv.fp8) {
        store_fp8(kv, page, row, [&](int d) { return d < dim ? bf16_value(head[d]) : 0.0f; });
        return;
    }
    for (int d = 2 * ((int)threadIdx.x % WARP); d < kv.dim_stride; d += 2 * WARP)
        store_pair(to, d, kv.dim_stride, load_pair(head, d, dim));
}

static __global__ void __launch_bounds__(ROPE_WARPS *WARP, 4)
    rope_kernel(gpu_rows rows, gpu_rope op)
{
    GPU_SHARED(shared);
    int row = (int)blockIdx.x, warp = (int)threadIdx.x / WARP;
    int dim = op.kv.head_dim, n_kv = op.kv.n_kv_heads, page = 0, slot = 0;
    int last = min((int)(blockIdx.y + 1) * ROPE_HEADS, op.n_heads + 2 * n_kv);
    float *angles = (float *)shared, *x = angles + op.rotary_dims + warp * dim;
    bool real = row < rows.counts->n_rows;

    /* the step's lists are older than the kernel before */
    if (real) {
        int pos = rows.pos[row];

        page = rows.pages[rows.page_start[row] + pos / op.kv.page_tokens];
        slot = pos % op.kv.page_tokens;
        fill_angles(op, pos, angles);
    }
    __syncthreads();
    wait_for_previous();
    if (!real)
        return;
    for (int i = (int)blockIdx.y * ROPE_HEADS + warp; i < last; i += ROPE_WARPS) {
        const uint16_t *head = op.qkv + row * op.ld + i * dim;
        int kv_head = max(i - op.n_heads, 0) % n_kv;
        uint8_t *to = op.kv.data + page * op.kv.page_stride + kv_head * gpu_kv_head_bytes(&op.kv);

        if (i >= op.n_heads + n_kv) {
            store_value(op.kv, head, to, slot + op.kv.page_tokens);
            continue;
        }
        fetch_head(op, head, i < op.n_heads ? op.q_norm : op.k_norm, x);
        if (i < op.n_heads)
            store_turned(op, x, angles, op.q + row * op.ldq + i * dim, dim);
        else
            store_key(op, x, angles, to, slot);
        __syncwarp(); /* the warp's next head takes x's place */
    }
}

extern "C" cudaError_t gpu_rope_run(const gpu_rows *rows, const gpu_rope *op, int n_rows,
                                    cudaStream_t stream)
{
    int heads = op->n_heads + 2 * op->kv.n_kv_heads;
    size_t floats = (size_t)op->rotary_dims + ROPE_WARPS * (size_t)op->kv.head_dim;
    dim3 grid((unsigned)n_rows, (unsigned)((heads + ROPE_HEADS - 1) / ROPE_HEADS));

    return gpu_launch_early(rope_kernel, grid, dim3(ROPE_WARPS * WARP), floats * sizeof(float),
                            stream, *rows, *op);
}
