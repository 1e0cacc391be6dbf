/*
 * attention_decode.cu: attention of rows that are their sequence's only one, or of its few. See
 * launch.h.
 *
 * A sequence's rows times the query heads that share a head of keys are "pairs", in the order of
 * rows and then heads. A block computes one split of the past for 16 of them: fewer, and rows of
 * mma's A are idle, which costs nothing where memory is the limit; several rows of a sequence are
 * read for at once, as far as their heads leave room. Keys and values come as a ring of tiles: keys
 * of block 0, values of block 0, keys of block 1, ... A warp has 16 of the block's 64 tokens in the
 * first product and some of the dimensions in the second, all p between them. A second kernel
 * merges the splits of rows that have several.
 */
#include "kernels/attention.cuh"

#define DECODE_WARPS ATTENTION_STEPS
#define DECODE_THREADS (DECODE_WARPS * WARP)
#define DECODE_PAIRS 16
/* Blocks of a multiprocessor of 227 KiB, and what of it is a block's tiles: one of 99 KiB has at
 * least one block. */
#define DECODE_RESIDENTS(dim16) ((dim16) > 8 ? 2 : 3)
#define DECODE_RING(dim16) ((dim16) > 8 ? 98304 : 71680)
#define DECODE_PAGES (GPU_KV_SPLIT / 16 + 1)
#define MERGE_THREADS 64

/* Shared memory after the ring. */
struct decode_shared {
    uint4 p[DECODE_WARPS][WARP]; /* mma's A of 16 tokens */
    float max[DECODE_WARPS][DECODE_PAIRS];
    int32_t pages[DECODE_PAGES];
};

struct decode_job {
    int entry, row,
        pos; /* of the sequence's first row: in decode_rows, in the step, its position */
    int first_pair, n_pairs; /* the block's; all that the sequence has */
    int group, first_head;   /* heads of a row; the first one */
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

/* Blocks that a sequence's pairs of one head of keys take. */
static __host__ __device__ int decode_passes(const gpu_attention &op)
{
    int group = op.n_heads / op.kv.n_kv_heads;

    return (op.decode_most * group + DECODE_PAIRS - 1) / DECODE_PAIRS;
}

/* Whether entry i of decode_rows is the row after that of entry i - 1, of the same sequence. */
static __device__ bool follows(const gpu_rows &rows, int i)
{
    int row = rows.decode_rows[i];

    return i > 0 && rows.decode_rows[i - 1] == row - 1 &&
           rows.page_start[row - 1] == rows.page_start[row];
}

/* How many rows of a sequence are computed together from entry i on: 0 where i is one of those of
 * an entry before. */
static __device__ int rows_together(const gpu_rows &rows, const gpu_attention &op, int i)
{
    int before = 0, n = 1;

    while (op.decode_most > 1 && follows(rows, i - before))
        before++;
    if (before % op.decode_most)
        return 0;
    while (n < op.decode_most && i + n < rows.counts->n_decode && follows(rows, i + n))
        n++;
    return n;
}

static __device__ bool find_job(decode_job &job, const gpu_rows &rows, const gpu_attention &op,
                                int page_shift)
{
    int split = (int)blockIdx.x, passes = decode_passes(op), last, n;
    int kv_head = (int)blockIdx.y / passes;

    job.entry = (int)blockIdx.z;
    if (job.entry >= rows.counts->n_decode)
        return false;
    n = rows_together(rows, op, job.entry);
    job.group = op.n_heads / op.kv.n_kv_heads;
    job.first_pair = (int)blockIdx.y % passes * DECODE_PAIRS;
    job.n_pairs = n * job.group;
    if (job.first_pair >= job.n_pairs)
        return false;
    job.first_head = kv_head * job.group;
    job.row = rows.decode_rows[job.entry];
    job.pos = rows.pos[job.row];
    job.kv = kv_source_of(op, kv_head, page_shift);
    job.kv.first =
        max(attention_first(job.pos + job.first_pair / job.group, op.window), split * GPU_KV_SPLIT);
    last = (min(job.first_pair + DECODE_PAIRS, job.n_pairs) - 1) / job.group;
    job.kv.end = min(job.pos + last + 1, (split + 1) * GPU_KV_SPLIT);
    job.kv.pages = rows.pages + rows.page_start[job.row];
    return job.kv.first < job.kv.end;
}

/* Which pair the lane's row h of mma's A is. */
static __device__ __forceinline__ int pair_of(const decode_job &job, int h)
{
    return job.first_pair + attention_lane() / 4 + 8 * h;
}

/* Its query; NULL where there is none. */
static __device__ __forceinline__ const uint16_t *query_of(const decode_job &job,
                                                           const gpu_attention &op, int h)
{
    int pair = pair_of(job, h);

    return pair < job.n_pairs ? op.q + (job.row + pair / job.group) * op.ldq +
                                    (int64_t)(job.first_head + pair % job.group) * op.kv.head_dim
                              : NULL;
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
template <int DIM16, bool FP8>
static __device__ __forceinline__ void warp_scores(float (&s)[2][4], const uint32_t (&q)[DIM16][4],
                                                   const uint8_t *keys, const int (&pos)[2],
                                                   int block, int window)
{
    int warp = attention_warp(), token = block * GPU_KV_BLOCK + 16 * warp;

    for (int e = 0; e < 4; e++)
        s[0][e] = s[1][e] = 0;
#pragma unroll
    for (int k = 0; k < DIM16; k++) {
        uint32_t b[4];

        kv_keys<DIM16, FP8>(b, keys, warp, k);
        mma_pair(s[0], s[1], q[k], b);
    }
    kv_scale_scores<DIM16, FP8>(s[0], s[1], keys, warp);
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

template <int DIM16, bool FP8> struct decode_tiles {
    typedef kv_ring<DIM16, FP8, DECODE_THREADS, DECODE_RING(DIM16)> ring;
    static_assert(ring::bytes + sizeof(decode_shared) <= GPU_SHARED_ANYWHERE,
                  "a block has more shared memory than some devices");
};

template <int DIM16> struct decode_state {
    static constexpr int columns = (DIM16 + DECODE_WARPS - 1) / DECODE_WARPS;
    uint32_t q[DIM16][4];
    int pos[2]; /* of the lane's pairs; -1: there is none */
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
                                                    const decode_job &job, const gpu_attention &op)
{
    const uint16_t *q0 = query_of(job, op, 0), *q1 = query_of(job, op, 1);

#pragma unroll
    for (int k = 0; k < DIM16; k++)
        query_fragment(state.q[k], q0, q1, k, op.kv.head_dim);
    for (int h = 0; h < 2; h++)
        state.pos[h] = pair_of(job, h) < job.n_pairs ? job.pos + pair_of(job, h) / job.group : -1;
    attention_empty(state.stats);
#pragma unroll
    for (int i = 0; i < decode_state<DIM16>::columns; i++)
        for (int e = 0; e < 8; e++)
            state.o[i][e / 4][e % 4] = 0;
}

/* o = o * keep + p v of the warp's dimensions. */
template <int DIM16, bool FP8>
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
    for (int n = 0; n < ATTENTION_STEPS; n++)
        kv_scale_weights<DIM16, FP8>(p[n], values, n);
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

            kv_values<DIM16, FP8>(b, values, n, column);
            mma_pair(state.o[i][0], state.o[i][1], p[n], b);
        }
    }
}

template <int DIM16, bool FP8>
static __device__ __forceinline__ void decode_block(decode_state<DIM16> &state, uint8_t *ring,
                                                    decode_shared *shared, const decode_job &job,
                                                    int i, int window, float scale)
{
    typedef typename decode_tiles<DIM16, FP8>::ring tiles;
    float s[2][4], max[2], keep[2], shift[2];
    uint32_t p[4];

    warp_scores<DIM16, FP8>(s, state.q, tiles::next(ring, job.kv, 2 * i), state.pos,
                            kv_first_block(job.kv) + i, window);
    block_max(max, s, shared);
    attention_raise(state.stats, max, scale, keep, shift);
    attention_weights(p, s[0], s[1], scale, shift);
    shared->p[attention_warp()][attention_lane()] = make_uint4(p[0], p[1], p[2], p[3]);
    add_values<DIM16, FP8>(state, tiles::next(ring, job.kv, 2 * i + 1), shared, keep);
}

/* Where a pair's results go. */
struct decode_target {
    uint16_t *o;    /* if the row has no other split; or NULL */
    float *partial; /* the split's */
    bool seen;      /* whether there is such a pair, and its row sees anything of the split */
};

static __device__ decode_target target_of(const decode_job &job, const gpu_attention &op,
                                          int n_splits, int h)
{
    int pair = pair_of(job, h), row = pair / job.group, pos = job.pos + row;
    int split = (int)blockIdx.x;
    int64_t head = job.first_head + pair % job.group;
    decode_target to = {NULL, NULL, false};

    to.seen = pair < job.n_pairs && pos / GPU_KV_SPLIT >= split &&
              attention_first(pos, op.window) / GPU_KV_SPLIT <= split;
    if (one_split(pos, op.window))
        to.o = op.o + (job.row + row) * op.ldo + head * op.kv.head_dim;
    to.partial =
        op.partial +
        (((int64_t)(job.entry + row) * op.n_heads + head) * n_splits + split) * partial_size(op.kv);
    return to;
}

/* A row's results; or those of the split, all dim_stride of them, the maximum and the sum. */
template <int DIM16>
static __device__ __forceinline__ void decode_store(const decode_state<DIM16> &state,
                                                    const decode_job &job, const gpu_attention &op,
                                                    int n_splits)
{
    int t = attention_lane() % 4;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        decode_target to = target_of(job, op, n_splits, h);
        float sum = row_sum(state.stats.sum[h]), reciprocal = 1.0f / sum;

        if (!to.seen)
            continue;
        if (!to.o && attention_warp() == 0 && t == 0) {
            to.partial[op.kv.dim_stride] = state.stats.max[h];
            to.partial[op.kv.dim_stride + 1] = sum;
        }
#pragma unroll
        for (int i = 0; i < 2 * decode_state<DIM16>::columns; i++) {
            int dim = 16 * (attention_warp() + i / 2 * DECODE_WARPS) + i % 2 * 8 + 2 * t;
            float x = state.o[i / 2][i % 2][2 * h], y = state.o[i / 2][i % 2][2 * h + 1];

            if (to.o)
                result_pair(
                    to.o, dim, op.kv.head_dim,
                    bf16_pack(attention_result(x, reciprocal), attention_result(y, reciprocal)));
            else if (dim < op.kv.dim_stride)
                *(float2 *)(to.partial + dim) = make_float2(x, y);
        }
    }
}

template <int DIM16, bool FP8>
static __global__ void __launch_bounds__(DECODE_THREADS, DECODE_RESIDENTS(DIM16))
    decode_kernel(gpu_rows rows, gpu_attention op, int page_shift, int n_splits)
{
    typedef typename decode_tiles<DIM16, FP8>::ring tiles;
    GPU_SHARED(ring);
    decode_shared *shared = (decode_shared *)(ring + tiles::bytes);
    decode_state<DIM16> state;
    decode_job job;
    bool any = find_job(job, rows, op, page_shift);

    /* the step's lists are older than the kernel before */
    if (any)
        fetch_pages(job.kv, shared->pages);
    wait_for_previous();
    if (!any)
        return;
    tiles::start(ring, job.kv);
    decode_start(state, job, op);
    for (int i = 0; i <= kv_last_block(job.kv) - kv_first_block(job.kv); i++)
        decode_block<DIM16, FP8>(state, ring, shared, job, i, op.window,
                                 op.scale * ATTENTION_LOG2E);
    copy_async_wait<0>();
    decode_store(state, job, op, n_splits);
}

/* A block has a row and head, a thread some of the dimensions. */
static __global__ void __launch_bounds__(MERGE_THREADS)
    merge_kernel(gpu_rows rows, gpu_attention op, int n_splits)
{
    int head = (int)blockIdx.x, dim_stride = op.kv.dim_stride;
    int64_t size = partial_size(op.kv);
    float scale = op.scale * ATTENTION_LOG2E;
    int row = rows.decode_rows[blockIdx.y], pos;

    wait_for_previous();
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

template <int DIM16, bool FP8>
static cudaError_t decode_launch(const gpu_rows *rows, const gpu_attention *op, int n_decode,
                                 int n_splits, cudaStream_t stream)
{
    unsigned passes = (unsigned)(op->kv.n_kv_heads * decode_passes(*op));

    return gpu_launch_early(
        decode_kernel<DIM16, FP8>, dim3((unsigned)n_splits, passes, (unsigned)n_decode),
        dim3(DECODE_THREADS), decode_tiles<DIM16, FP8>::ring::bytes + sizeof(decode_shared), stream,
        *rows, *op, attention_page_shift(op), n_splits);
}

extern "C" cudaError_t gpu_attention_decode(const gpu_rows *rows, const gpu_attention *op,
                                            int n_decode, int n_splits, cudaStream_t stream)
{
    cudaError_t code;

    if (n_decode == 0)
        return cudaSuccess;
    if (op->decode_most < 1)
        return cudaErrorInvalidValue;
    ATTENTION_LAUNCH(code, decode_launch, op->kv, rows, op, n_decode, n_splits, stream);
    if (code != cudaSuccess || n_splits == 1)
        return code;
    return gpu_launch_early(merge_kernel, dim3((unsigned)op->n_heads, (unsigned)n_decode),
                            dim3(MERGE_THREADS), 0, stream, *rows, *op, n_splits);
}
