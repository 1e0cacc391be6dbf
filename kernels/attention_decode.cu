/*
 * attention_decode.cu: attention of rows that are their sequence's only one. See launch.h.
 *
 * A block computes one split of a row's past for 16 query heads that share a head of keys:
 * fewer, and rows of mma's A are idle, which costs nothing where memory is the limit. Keys and
 * values come as a ring of tiles: keys of block 0, values of block 0, keys of block 1, ... A warp
 * has 16 of the block's 64 tokens in the first product and some of the dimensions in the
 * second, all p between them. A second kernel merges the splits of rows that have several.
 */
#include "kernels/attention.cuh"

#define DECODE_WARPS ATTENTION_STEPS
#define DECODE_THREADS (DECODE_WARPS * WARP)
#define DECODE_HEADS 16
/* Blocks of a multiprocessor of 227 KiB, and what of it is a block's tiles: one of 99 KiB has at
 * least one block. */
#define DECODE_RESIDENTS(dim16) ((dim16) > 8 ? 2 : 3)
#define DECODE_RING(dim16) ((dim16) > 8 ? 98304 : 71680)
#define DECODE_PAGES (GPU_KV_SPLIT / 16 + 1)
#define MERGE_THREADS 64

/* Shared memory after the ring. */
struct decode_shared {
    uint4 p[DECODE_WARPS][WARP]; /* mma's A of 16 tokens */
    float max[DECODE_WARPS][DECODE_HEADS];
    int32_t pages[DECODE_PAGES];
};

struct decode_job {
    int pos, first_head, n_heads; /* of the row; of query heads */
    const uint16_t *q;            /* of first_head */
    uint16_t *o;                  /* the same, if the row has no other split; or NULL */
    float *partial; /* of first_head's split; the next head's is partial_step further */
    int64_t partial_step;
    kv_source kv;
};

/* In floats: the results, the maximum, the sum. */
static __host__ __device__ int64_t partial_size(const gpu_kv_layer &kv)
{
    return kv.dim_stride + 2;
}

/* Whether all that a row sees is in one split: merging it into nothing would change nothing. */
static __device__ bool one_split(int pos, int window)
{
    return attention_first(pos, window) / GPU_KV_SPLIT == pos / GPU_KV_SPLIT;
}

static __device__ bool find_job(decode_job &job, const gpu_rows &rows, const gpu_attention &op,
                                int page_shift, int n_splits)
{
    int split = (int)blockIdx.x, group = op.n_heads / op.kv.n_kv_heads;
    int passes = (group + DECODE_HEADS - 1) / DECODE_HEADS;
    int kv_head = (int)blockIdx.y / passes, pass = (int)blockIdx.y % passes;
    int row = rows.decode_rows[blockIdx.z]; /* any number beyond the real ones */

    if ((int)blockIdx.z >= rows.counts->n_decode)
        return false;
    job.pos = rows.pos[row];
    job.kv = kv_source_of(op, kv_head, page_shift);
    job.kv.first = max(attention_first(job.pos, op.window), split * GPU_KV_SPLIT);
    job.kv.end = min(job.pos + 1, (split + 1) * GPU_KV_SPLIT);
    if (job.kv.first >= job.kv.end)
        return false;
    job.kv.pages = rows.pages + rows.page_start[row];
    job.first_head = kv_head * group + pass * DECODE_HEADS;
    job.n_heads = min(DECODE_HEADS, group - pass * DECODE_HEADS);
    job.q = op.q + row * op.ldq + (int64_t)job.first_head * op.kv.head_dim;
    job.o = one_split(job.pos, op.window)
                ? op.o + row * op.ldo + (int64_t)job.first_head * op.kv.head_dim
                : NULL;
    job.partial_step = n_splits * partial_size(op.kv);
    job.partial = op.partial +
                  ((int64_t)blockIdx.z * op.n_heads + job.first_head) * job.partial_step +
                  split * partial_size(op.kv);
    return true;
}

/* The numbers of the split's pages, so that no copy waits for one. */
static __device__ void fetch_pages(kv_source &kv, int32_t *shared)
{
    int first = kv.first >> kv.page_shift, last = (kv.end - 1) >> kv.page_shift;

    for (int i = (int)threadIdx.x; i <= last - first; i += DECODE_THREADS)
        shared[i] = kv.pages[first + i];
    kv.first_page = first;
    kv.pages = shared;
    __syncthreads();
}

/* The warp's 16 tokens: scores. */
template <int DIM16>
static __device__ __forceinline__ void warp_scores(float (&s)[2][4], const uint32_t (&q)[DIM16][4],
                                                   const uint8_t *keys, const decode_job &job,
                                                   int block, int window)
{
    int warp = attention_warp(), token = block * GPU_KV_BLOCK + 16 * warp;
    const int pos[2] = {job.pos, job.pos};

    for (int e = 0; e < 4; e++)
        s[0][e] = s[1][e] = 0;
#pragma unroll
    for (int k = 0; k < DIM16; k++) {
        uint32_t b[4];

        kv_keys<2 * DIM16>(b, keys, warp, k);
        mma_pair(s[0], s[1], q[k], b);
    }
    attention_mask(s[0], token, pos, window);
    attention_mask(s[1], token + 8, pos, window);
}

/* The maximum over all warps' tokens, from each one's scores. */
static __device__ __forceinline__ void block_max(float (&max)[2], const float (&s)[2][4],
                                                 decode_shared *shared)
{
    int g = attention_lane() / 4;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        max[h] = row_max(
            fmaxf(fmaxf(s[0][2 * h], s[0][2 * h + 1]), fmaxf(s[1][2 * h], s[1][2 * h + 1])));
        if (attention_lane() % 4 == 0)
            shared->max[attention_warp()][g + 8 * h] = max[h];
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++)
            max[h] = fmaxf(max[h], shared->max[w][g + 8 * h]);
}

template <int DIM16> struct decode_state {
    typedef kv_ring<DIM16, DECODE_THREADS, DECODE_RING(DIM16)> tiles;
    static constexpr int columns = (DIM16 + DECODE_WARPS - 1) / DECODE_WARPS;
    uint32_t q[DIM16][4];
    attention_stats stats;
    float o[columns][2][4]; /* of dimensions 16 * (warp + i * DECODE_WARPS) .. */
};

/* mma's A of the lane's two rows (NULL: zeros), dimensions 16 * k ... */
static __device__ __forceinline__ void query_fragment(uint32_t (&a)[4], const uint16_t *q0,
                                                      const uint16_t *q1, int k, int head_dim)
{
    int dim = 16 * k + attention_lane() % 4 * 2;

    a[0] = q0 ? query_pair(q0, dim, head_dim) : 0;
    a[1] = q1 ? query_pair(q1, dim, head_dim) : 0;
    a[2] = q0 ? query_pair(q0, dim + 8, head_dim) : 0;
    a[3] = q1 ? query_pair(q1, dim + 8, head_dim) : 0;
}

template <int DIM16>
static __device__ __forceinline__ void decode_start(decode_state<DIM16> &state,
                                                    const decode_job &job, int head_dim)
{
    int g = attention_lane() / 4;

#pragma unroll
    for (int k = 0; k < DIM16; k++)
        query_fragment(state.q[k], g < job.n_heads ? job.q + g * head_dim : NULL,
                       g + 8 < job.n_heads ? job.q + (g + 8) * head_dim : NULL, k, head_dim);
    attention_empty(state.stats);
#pragma unroll
    for (int i = 0; i < decode_state<DIM16>::columns; i++)
        for (int e = 0; e < 8; e++)
            state.o[i][e / 4][e % 4] = 0;
}

/* o = o * keep + p v of the warp's dimensions. */
template <int DIM16>
static __device__ __forceinline__ void add_values(decode_state<DIM16> &state, const uint8_t *values,
                                                  decode_shared *shared, const float (&keep)[2])
{
    uint32_t p[ATTENTION_STEPS][4];

#pragma unroll
    for (int n = 0; n < ATTENTION_STEPS; n++) {
        uint4 from = shared->p[n][attention_lane()];

        p[n][0] = from.x;
        p[n][1] = from.y;
        p[n][2] = from.z;
        p[n][3] = from.w;
    }
    attention_add(state.stats, p, keep);
#pragma unroll
    for (int i = 0; i < decode_state<DIM16>::columns; i++) {
        int column = attention_warp() + i * DECODE_WARPS;

        if (column >= DIM16)
            continue;
        attention_scale(state.o[i][0], keep);
        attention_scale(state.o[i][1], keep);
#pragma unroll
        for (int n = 0; n < ATTENTION_STEPS; n++) {
            uint32_t b[4];

            kv_values<2 * DIM16>(b, values, n, column);
            mma_pair(state.o[i][0], state.o[i][1], p[n], b);
        }
    }
}

template <int DIM16>
static __device__ __forceinline__ void decode_block(decode_state<DIM16> &state, uint8_t *ring,
                                                    decode_shared *shared, const decode_job &job,
                                                    int i, int window, float scale)
{
    typedef typename decode_state<DIM16>::tiles tiles;
    float s[2][4], max[2], keep[2], shift[2];
    uint32_t p[4];

    warp_scores<DIM16>(s, state.q, tiles::next(ring, job.kv, 2 * i), job,
                       kv_first_block(job.kv) + i, window);
    block_max(max, s, shared);
    attention_raise(state.stats, max, scale, keep, shift);
    attention_weights(p, s[0], s[1], scale, shift);
    shared->p[attention_warp()][attention_lane()] = make_uint4(p[0], p[1], p[2], p[3]);
    add_values<DIM16>(state, tiles::next(ring, job.kv, 2 * i + 1), shared, keep);
}

/* The row's results; or those of the split, all dim_stride of them, the maximum and the sum. */
template <int DIM16>
static __device__ __forceinline__ void decode_store(const decode_state<DIM16> &state,
                                                    const decode_job &job, int head_dim)
{
    int t = attention_lane() % 4;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        int head = attention_lane() / 4 + 8 * h;
        float *to = job.partial + head * job.partial_step;
        float sum = row_sum(state.stats.sum[h]), reciprocal = 1.0f / sum;

        if (head >= job.n_heads)
            continue;
        if (!job.o && attention_warp() == 0 && t == 0) {
            to[job.kv.dim_stride] = state.stats.max[h];
            to[job.kv.dim_stride + 1] = sum;
        }
#pragma unroll
        for (int i = 0; i < 2 * decode_state<DIM16>::columns; i++) {
            int dim = 16 * (attention_warp() + i / 2 * DECODE_WARPS) + i % 2 * 8 + 2 * t;
            float x = state.o[i / 2][i % 2][2 * h], y = state.o[i / 2][i % 2][2 * h + 1];

            if (job.o)
                result_pair(
                    job.o + head * head_dim, dim, head_dim,
                    bf16_pack(attention_result(x, reciprocal), attention_result(y, reciprocal)));
            else if (dim < job.kv.dim_stride)
                *(float2 *)(to + dim) = make_float2(x, y);
        }
    }
}

template <int DIM16>
static __global__ void __launch_bounds__(DECODE_THREADS, DECODE_RESIDENTS(DIM16))
    decode_kernel(gpu_rows rows, gpu_attention op, int page_shift, int n_splits)
{
    GPU_SHARED(ring);
    decode_shared *shared = (decode_shared *)(ring + decode_state<DIM16>::tiles::bytes);
    decode_state<DIM16> state;
    decode_job job;

    if (!find_job(job, rows, op, page_shift, n_splits))
        return;
    fetch_pages(job.kv, shared->pages);
    decode_state<DIM16>::tiles::start(ring, job.kv);
    decode_start(state, job, op.kv.head_dim);
    for (int i = 0; i <= kv_last_block(job.kv) - kv_first_block(job.kv); i++)
        decode_block(state, ring, shared, job, i, op.window, op.scale * ATTENTION_LOG2E);
    copy_async_wait<0>();
    decode_store(state, job, op.kv.head_dim);
}

/* A block has a row and head, a thread some of the dimensions. */
static __global__ void __launch_bounds__(MERGE_THREADS)
    merge_kernel(gpu_rows rows, gpu_attention op, int n_splits)
{
    int head = (int)blockIdx.x, dim_stride = op.kv.dim_stride;
    int64_t size = partial_size(op.kv);
    float scale = op.scale * ATTENTION_LOG2E;
    int row = rows.decode_rows[blockIdx.y], pos;

    if ((int)blockIdx.y >= rows.counts->n_decode)
        return;
    pos = rows.pos[row];
    if (one_split(pos, op.window))
        return;
    for (int dim = 2 * (int)threadIdx.x; dim < op.kv.head_dim; dim += 2 * MERGE_THREADS) {
        const float *from =
            op.partial + ((int64_t)blockIdx.y * op.n_heads + head) * n_splits * size;
        float max = -INFINITY, sum = 0, o0 = 0, o1 = 0, keep, add;

#pragma unroll 4
        for (int i = attention_first(pos, op.window) / GPU_KV_SPLIT; i <= pos / GPU_KV_SPLIT; i++) {
            const float *split = from + i * size;
            float2 pair = *(const float2 *)(split + dim);

            attention_merge(max, sum, split[dim_stride], split[dim_stride + 1], scale, keep, add);
            o0 = attention_merged(o0, pair.x, keep, add);
            o1 = attention_merged(o1, pair.y, keep, add);
        }
        sum = 1.0f / sum;
        result_pair(op.o + row * op.ldo + (int64_t)head * op.kv.head_dim, dim, op.kv.head_dim,
                    bf16_pack(attention_result(o0, sum), attention_result(o1, sum)));
    }
}

extern "C" size_t gpu_attention_partial(const gpu_attention *op, int n_decode, int n_splits)
{
    return (size_t)n_decode * (size_t)op->n_heads * (size_t)n_splits * (size_t)partial_size(op->kv);
}

template <int DIM16>
static cudaError_t decode_launch(const gpu_rows *rows, const gpu_attention *op, int n_decode,
                                 int n_splits, cudaStream_t stream)
{
    int group = op->n_heads / op->kv.n_kv_heads;
    int passes = (group + DECODE_HEADS - 1) / DECODE_HEADS;

    return gpu_launch(
        decode_kernel<DIM16>,
        dim3((unsigned)n_splits, (unsigned)(op->kv.n_kv_heads * passes), (unsigned)n_decode),
        dim3(DECODE_THREADS), decode_state<DIM16>::tiles::bytes + sizeof(decode_shared), stream,
        *rows, *op, attention_page_shift(op), n_splits);
}

extern "C" cudaError_t gpu_attention_decode(const gpu_rows *rows, const gpu_attention *op,
                                            int n_decode, int n_splits, cudaStream_t stream)
{
    cudaError_t code;

    if (n_decode == 0)
        return cudaSuccess;
    ATTENTION_DIMS(code, decode_launch, op->kv.dim_stride, rows, op, n_decode, n_splits, stream);
    if (code != cudaSuccess || n_splits == 1)
        return code;
    return gpu_launch(merge_kernel, dim3((unsigned)op->n_heads, (unsigned)n_decode),
                      dim3(MERGE_THREADS), 0, stream, *rows, *op, n_splits);
}
