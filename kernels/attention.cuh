/*
 * attention.cuh: the arithmetic that both attention kernels share, so that a row has the same
 * bits whichever computes it (README.md, attention): the scores of 16 rows, the running maximum
 * and sum, what follows from them, and merging.
 *
 * "16 rows" are the rows of mma's A: pairs of a row of the step and a query head. A lane holds
 * numbers of two of them, g = lane / 4 and g + 8, called row 0 and 1 here. Where a product could
 * be contracted with a sum it is written as fmaf: what the compiler may choose differs between
 * two kernels.
 *
 * Maxima are of the scores before they are scaled (the scale is above 0); `scale` is that of
 * powers of 2.
 */
#ifndef OL_ATTENTION_CUH
#define OL_ATTENTION_CUH

#include "kernels/kv.cuh"

#define ATTENTION_LOG2E 1.44269504f
#define ATTENTION_SPLIT_BLOCKS (GPU_KV_SPLIT / GPU_KV_BLOCK)
#define ATTENTION_STEPS (GPU_KV_BLOCK / 16) /* of the second product: 16 tokens each */

/* -- choosing a kernel -------------------------------------------------------------------- */

/* code = launch<DIM16, FP8>(...): kernels are made for these multiples of 16 dimensions. Heads
 * between two of them have zeros in the larger one's, which change no sum. */
#define ATTENTION_DIMS(code, launch, fp8, dim_stride, ...)                                         \
    do {                                                                                           \
        int dim_stride_ = (dim_stride);                                                            \
                                                                                                   \
        code = dim_stride_ <= 32    ? launch<2, fp8>(__VA_ARGS__)                                  \
               : dim_stride_ <= 64  ? launch<4, fp8>(__VA_ARGS__)                                  \
               : dim_stride_ <= 80  ? launch<5, fp8>(__VA_ARGS__)                                  \
               : dim_stride_ <= 96  ? launch<6, fp8>(__VA_ARGS__)                                  \
               : dim_stride_ <= 128 ? launch<8, fp8>(__VA_ARGS__)                                  \
               : dim_stride_ <= 192 ? launch<12, fp8>(__VA_ARGS__)                                 \
               : dim_stride_ <= 256 ? launch<16, fp8>(__VA_ARGS__)                                 \
                                    : cudaErrorInvalidValue;                                       \
    } while (0)

#define ATTENTION_LAUNCH(code, launch, kv, ...)                                                    \
    do {                                                                                           \
        if ((kv).fp8)                                                                              \
            ATTENTION_DIMS(code, launch, true, (kv).dim_stride, __VA_ARGS__);                      \
        else                                                                                       \
            ATTENTION_DIMS(code, launch, false, (kv).dim_stride, __VA_ARGS__);                     \
    } while (0)

/* The power of 2 that a page's tokens are. */
static inline int attention_page_shift(const gpu_attention *op)
{
    int shift = 0;

    while (1 << shift < op->kv.page_tokens)
        shift++;
    return shift;
}

/* -- queries, results --------------------------------------------------------------------- */

/* Two neighbouring dimensions of a head. Heads lie side by side, so those of an odd number of
 * dimensions are not aligned, and what follows a head's last one is another's first. */
static __device__ __forceinline__ uint32_t query_pair(const uint16_t *q, int dim, int head_dim)
{
    if (dim >= head_dim)
        return 0;
    if (head_dim % 2 == 0)
        return *(const uint32_t *)(q + dim);
    return q[dim] | (dim + 1 < head_dim ? (uint32_t)q[dim + 1] << 16 : 0);
}

static __device__ __forceinline__ void result_pair(uint16_t *o, int dim, int head_dim,
                                                   uint32_t pair)
{
    if (dim >= head_dim)
        return;
    if (head_dim % 2 == 0) {
        *(uint32_t *)(o + dim) = pair;
        return;
    }
    o[dim] = (uint16_t)pair;
    if (dim + 1 < head_dim)
        o[dim + 1] = (uint16_t)(pair >> 16);
}

/* -- scores ------------------------------------------------------------------------------- */

/* The first token that the row at pos sees. */
static __device__ __forceinline__ int attention_first(int pos, int window)
{
    return window > 0 && pos >= window ? pos - window + 1 : 0;
}

/* s: scores of 8 tokens from `token` on; -infinity where the lane's rows at pos[] do not see
 * them. */
static __device__ __forceinline__ void attention_mask(float (&s)[4], int token, const int (&pos)[2],
                                                      int window)
{
    int at = token + attention_lane() % 4 * 2;

#pragma unroll
    for (int e = 0; e < 4; e++) {
        int p = pos[e / 2], t = at + e % 2;

        if (t > p || t < attention_first(p, window))
            s[e] = -INFINITY;
    }
}

/* Over the four lanes that share a row. */
static __device__ __forceinline__ float row_max(float v)
{
    v = fmaxf(v, __shfl_xor_sync(FULL_MASK, v, 1));
    return fmaxf(v, __shfl_xor_sync(FULL_MASK, v, 2));
}

static __device__ __forceinline__ float row_sum(float v)
{
    v += __shfl_xor_sync(FULL_MASK, v, 1);
    return v + __shfl_xor_sync(FULL_MASK, v, 2);
}

/* -- maximum and sum ---------------------------------------------------------------------- */

/* Of the lane's rows. Within a split `sum` is of the lane's own columns. */
struct attention_stats {
    float max[2], sum[2];
};

static __device__ __forceinline__ void attention_empty(attention_stats &stats)
{
    for (int h = 0; h < 2; h++) {
        stats.max[h] = -INFINITY;
        stats.sum[h] = 0;
    }
}

/* What sums that were made with the maximum `from` are multiplied by when it becomes `to`. */
static __device__ __forceinline__ float attention_decay(float from, float to, float scale)
{
    return from == -INFINITY ? 0.0f : exp2_fast((from - to) * scale);
}

/* A block's maximum joins: keep[] is for what was summed so far, shift[] for the block's p. */
static __device__ __forceinline__ void attention_raise(attention_stats &stats,
                                                       const float (&block_max)[2], float scale,
                                                       float (&keep)[2], float (&shift)[2])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float max = fmaxf(stats.max[h], block_max[h]);

        keep[h] = attention_decay(stats.max[h], max, scale);
        shift[h] = max == -INFINITY ? 0.0f : max * scale;
        stats.max[h] = max;
    }
}

/* Two neighbouring p of a row. */
static __device__ __forceinline__ uint32_t attention_p(float s0, float s1, float scale, float shift)
{
    return bf16_pack(exp2_fast(fmaf(s0, scale, -shift)), exp2_fast(fmaf(s1, scale, -shift)));
}

/* p of 16 tokens as mma's A, from the scores of the first 8 and the others. */
static __device__ __forceinline__ void attention_weights(uint32_t (&p)[4], const float (&s0)[4],
                                                         const float (&s1)[4], float scale,
                                                         const float (&shift)[2])
{
    p[0] = attention_p(s0[0], s0[1], scale, shift[0]);
    p[1] = attention_p(s0[2], s0[3], scale, shift[1]);
    p[2] = attention_p(s1[0], s1[1], scale, shift[0]);
    p[3] = attention_p(s1[2], s1[3], scale, shift[1]);
}

/* sum = sum * keep + all p of the block, as they were rounded. */
static __device__ __forceinline__ void attention_add(attention_stats &stats,
                                                     const uint32_t (&p)[ATTENTION_STEPS][4],
                                                     const float (&keep)[2])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float block = 0;

#pragma unroll
        for (int n = 0; n < ATTENTION_STEPS; n++)
            block += (bf16_low(p[n][h]) + bf16_high(p[n][h])) +
                     (bf16_low(p[n][h + 2]) + bf16_high(p[n][h + 2]));
        stats.sum[h] = fmaf(stats.sum[h], keep[h], block);
    }
}

static __device__ __forceinline__ void attention_scale(float (&o)[4], const float (&keep)[2])
{
    o[0] *= keep[0];
    o[1] *= keep[0];
    o[2] *= keep[1];
    o[3] *= keep[1];
}

/* From a block's scores to p; the results of N times 8 dimensions so far are scaled to the new
 * maximum. */
template <int N>
static __device__ __forceinline__ void
attention_soften(uint32_t (&p)[ATTENTION_STEPS][4], const float (&s)[2 * ATTENTION_STEPS][4],
                 attention_stats &stats, float (&o)[N][4], float scale)
{
    float max[2], keep[2], shift[2];

#pragma unroll
    for (int h = 0; h < 2; h++) {
        max[h] = -INFINITY;
#pragma unroll
        for (int n = 0; n < 2 * ATTENTION_STEPS; n++)
            max[h] = fmaxf(max[h], fmaxf(s[n][2 * h], s[n][2 * h + 1]));
        max[h] = row_max(max[h]);
    }
    attention_raise(stats, max, scale, keep, shift);
#pragma unroll
    for (int n = 0; n < ATTENTION_STEPS; n++)
        attention_weights(p[n], s[2 * n], s[2 * n + 1], scale, shift);
    attention_add(stats, p, keep);
    if (!__any_sync(FULL_MASK, keep[0] != 1.0f || keep[1] != 1.0f))
        return; /* most often: the maximum was seen before */
#pragma unroll
    for (int c = 0; c < N; c++)
        attention_scale(o[c], keep);
}

/* -- merging splits ----------------------------------------------------------------------- */

/* (max, sum) and the results that go with it, followed by those of a split: every result becomes
 * attention_merged() of itself and the split's. */
static __device__ __forceinline__ void attention_merge(float &max, float &sum, float split_max,
                                                       float split_sum, float scale, float &keep,
                                                       float &add)
{
    float both = fmaxf(max, split_max);

    keep = attention_decay(max, both, scale);
    add = attention_decay(split_max, both, scale);
    sum = fmaf(split_sum, add, sum * keep);
    max = both;
}

static __device__ __forceinline__ float attention_merged(float total, float split, float keep,
                                                         float add)
{
    return fmaf(split, add, total * keep);
}

/* o / sum; with + 0 for either sign of zero, which is all that tokens that a row does not see
 * can change. */
static __device__ __forceinline__ float attention_result(float total, float reciprocal)
{
    return fmaf(total, reciprocal, 0.0f);
}

/* A split ends: what was saved of those before it joins it, unless it is the first (then it is
 * the total as it is: what merging into nothing comes to). N times 8 dimensions. */
template <int N>
static __device__ __forceinline__ void attention_end_split(float (&o)[N][4], attention_stats &stats,
                                                           const float4 *saved, bool first,
                                                           float scale)
{
    float keep[2], add[2];
    float4 total;

    for (int h = 0; h < 2; h++)
        stats.sum[h] = row_sum(stats.sum[h]);
    if (first)
        return;
    total = saved[N];
    attention_merge(total.x, total.y, stats.max[0], stats.sum[0], scale, keep[0], add[0]);
    attention_merge(total.z, total.w, stats.max[1], stats.sum[1], scale, keep[1], add[1]);
    stats = {{total.x, total.z}, {total.y, total.w}};
#pragma unroll
    for (int c = 0; c < N; c++) {
        total = saved[c];
        o[c][0] = attention_merged(total.x, o[c][0], keep[0], add[0]);
        o[c][1] = attention_merged(total.y, o[c][1], keep[0], add[0]);
        o[c][2] = attention_merged(total.z, o[c][2], keep[1], add[1]);
        o[c][3] = attention_merged(total.w, o[c][3], keep[1], add[1]);
    }
}

/* Another one begins: the total so far is saved, N + 1 of them. */
template <int N>
static __device__ __forceinline__ void attention_start_split(float (&o)[N][4],
                                                             attention_stats &stats, float4 *saved)
{
#pragma unroll
    for (int c = 0; c < N; c++) {
        saved[c] = make_float4(o[c][0], o[c][1], o[c][2], o[c][3]);
        o[c][0] = o[c][1] = o[c][2] = o[c][3] = 0;
    }
    saved[N] = make_float4(stats.max[0], stats.sum[0], stats.max[1], stats.sum[1]);
    attention_empty(stats);
}

#endif
