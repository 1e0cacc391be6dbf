/*
 * attention_prefill.cu: attention of several neighbouring rows of a sequence. See launch.h.
 *
 * A tile's rows times the query heads that share a head of keys are "pairs"; a block takes
 * some of them, in the order of rows and then heads, so that one reading of keys and values
 * serves all these heads. A warp has TILES times 16 pairs and goes through the blocks of 64
 * tokens that any of them sees, in ascending order: keys, values, the next keys, ... come as a ring
 * of tiles while it computes.
 *
 * Within a split results are in registers. What the splits before it came to is merged with it
 * when it ends, as decoding merges splits; until then it is out of the way, in local memory: a
 * few reads and writes each 512 tokens, and none for rows that see a single split. The registers
 * it would take are worth more: of 32 pairs a warp reads keys and values half as often as of 16,
 * for which shared memory is slower than the products.
 */
#include "kernels/attention.cuh"

#define PREFILL_WARPS 4
#define PREFILL_THREADS (PREFILL_WARPS * WARP)
#define PREFILL_SHARED 98304 /* bytes at most: two blocks a multiprocessor of 227 KiB */

template <int DIM16> struct prefill_shape {
    static constexpr int tiles = DIM16 > 8 ? 1 : 2;
    static constexpr int pairs = PREFILL_WARPS * 16 * tiles;
    static constexpr int columns = 2 * DIM16; /* of 8 dimensions */
    typedef kv_tile<columns> rows;            /* of queries as of keys */
    static constexpr int query_bytes = pairs * rows::stride * 16;
};

template <int DIM16, bool FP8> struct prefill_tiles {
    typedef kv_ring<DIM16, FP8, PREFILL_THREADS, PREFILL_SHARED - prefill_shape<DIM16>::query_bytes>
        ring;
};

/* What a block has to do. */
struct prefill_job {
    int first_row, group, first_head;
    int first_pair, n_pairs; /* of the tile: n_pairs in all */
    kv_source kv;
};

/* What a warp has. */
template <int DIM16> struct prefill_state {
    typedef prefill_shape<DIM16> shape;
    float o[shape::tiles][shape::columns][4];
    attention_stats stats[shape::tiles];
};

/* What is needed now and then, so that it takes no registers: shared memory after the ring. */
struct prefill_bounds {
    int first, last;         /* tokens that any of a warp's pairs sees; last is -1: it has none */
    int all_first, all_last; /* tokens that all of them see */
};
template <int DIM16> struct prefill_shared {
    prefill_bounds bounds[PREFILL_WARPS];
    struct pair {
        int32_t row, head; /* row -1: there is none */
    } pairs[prefill_shape<DIM16>::pairs];
    int32_t pos[prefill_shape<DIM16>::pairs]; /* of a pair that is none: -1 */
};

template <int DIM16, bool FP8> struct prefill_memory {
    typedef typename prefill_tiles<DIM16, FP8>::ring ring;
    static constexpr size_t bytes =
        prefill_shape<DIM16>::query_bytes + ring::bytes + sizeof(prefill_shared<DIM16>);
    static_assert(bytes <= GPU_SHARED_ANYWHERE, "a block has more shared memory than some devices");
};

static __host__ __device__ int prefill_chunks(int group, int pairs)
{
    return (GPU_TILE_ROWS * group + pairs - 1) / pairs;
}

/* Blocks are numbered so that those of late tiles, which see the most, start first. */
static __device__ bool find_job(prefill_job &job, const gpu_rows &rows, const gpu_attention &op,
                                int page_shift, int n_tiles, int pairs)
{
    int group = op.n_heads / op.kv.n_kv_heads, chunks = prefill_chunks(group, pairs);
    int i = (int)blockIdx.x / chunks, chunk = chunks - 1 - (int)blockIdx.x % chunks;
    int kv_head = i % op.kv.n_kv_heads, row;
    gpu_tile tile;

    i = n_tiles - 1 - i / op.kv.n_kv_heads;
    if (i >= rows.counts->n_tiles)
        return false;
    tile = rows.tiles[i];
    job.first_row = tile.first_row;
    job.first_pair = chunk * pairs;
    job.n_pairs = tile.n_rows * group;
    job.group = group;
    job.first_head = kv_head * group;
    if (job.first_pair >= job.n_pairs)
        return false;
    row = tile.first_row + job.first_pair / group;
    job.kv = kv_source_of(op, kv_head, page_shift);
    job.kv.pages = rows.pages + rows.page_start[row];
    job.kv.first = attention_first(rows.pos[row], op.window);
    row = tile.first_row + (min(job.first_pair + pairs, job.n_pairs) - 1) / group;
    job.kv.end = rows.pos[row] + 1;
    return true;
}

static __device__ __forceinline__ int pos_of(const gpu_rows &rows, const prefill_job &job, int pair)
{
    return pair < job.n_pairs ? rows.pos[job.first_row + pair / job.group] : -1;
}

template <int DIM16>
static __device__ __forceinline__ void find_pairs(prefill_shared<DIM16> *shared,
                                                  const prefill_job &job)
{
    int i = (int)threadIdx.x, pair = job.first_pair + i;

    if (i < prefill_shape<DIM16>::pairs)
        shared->pairs[i] = {pair < job.n_pairs ? job.first_row + pair / job.group : -1,
                            job.first_head + pair % job.group};
    __syncthreads();
}

/* The block's queries to shared memory: as asynchronous copies where heads are aligned; in a
 * group with what is copied next. */
template <int DIM16>
static __device__ __forceinline__ void
fetch_queries(uint8_t *queries, const prefill_shared<DIM16> *shared, const gpu_attention &op)
{
    typedef prefill_shape<DIM16> shape;
    int head_dim = op.kv.head_dim;

    for (int i = (int)threadIdx.x; i < shape::pairs * shape::columns; i += PREFILL_THREADS) {
        int pair = i / shape::columns, chunk = i % shape::columns;
        int64_t row = shared->pairs[pair].row, head = shared->pairs[pair].head;
        const uint16_t *from = row < 0 ? NULL : op.q + row * op.ldq + head * head_dim;
        uint8_t *to = queries + shape::rows::at(pair, chunk);

        if (head_dim % 8 == 0) {
            bool valid = from && 8 * chunk < head_dim;

            copy_async16(to, valid ? from + 8 * chunk : op.q, valid);
            continue;
        }
        for (int j = 0; j < 4; j++)
            ((uint32_t *)to)[j] = from ? query_pair(from, 8 * chunk + 2 * j, head_dim) : 0;
    }
}

template <int DIM16>
static __device__ __forceinline__ void
prefill_start(prefill_state<DIM16> &state, prefill_shared<DIM16> *shared, const gpu_rows &rows,
              const prefill_job &job, int window)
{
    typedef prefill_shape<DIM16> shape;
    int begin = job.first_pair + attention_warp() * 16 * shape::tiles;
    int end = min(begin + 16 * shape::tiles, job.n_pairs);
    int low = pos_of(rows, job, begin), high = end > begin ? pos_of(rows, job, end - 1) : -1;

    if (attention_lane() == 0)
        shared->bounds[attention_warp()] = {attention_first(low, window), high,
                                            attention_first(high, window), low};
    if ((int)threadIdx.x < shape::pairs)
        shared->pos[threadIdx.x] = pos_of(rows, job, job.first_pair + (int)threadIdx.x);
#pragma unroll
    for (int i = 0; i < shape::tiles; i++) {
        attention_empty(state.stats[i]);
#pragma unroll
        for (int c = 0; c < shape::columns; c++)
            state.o[i][c][0] = state.o[i][c][1] = state.o[i][c][2] = state.o[i][c][3] = 0;
    }
}

/* mma's A of the warp's 16 pairs of tile i, dimensions 16 * k .. */
template <int DIM16>
static __device__ __forceinline__ void query_fragment(uint32_t (&a)[4], const uint8_t *queries,
                                                      int i, int k)
{
    typedef prefill_shape<DIM16> shape;
    int lane = attention_lane(), pair = (attention_warp() * shape::tiles + i) * 16 + lane % 16;

    load_matrix4(a, queries + shape::rows::at(pair, 2 * k + lane / 16));
}

/* s = q k of the warp's pairs and all 64 tokens. */
template <int DIM16, bool FP8, int TILES>
static __device__ __forceinline__ void all_scores(float (&s)[TILES][2 * ATTENTION_STEPS][4],
                                                  const uint8_t *queries, const uint8_t *keys)
{
    uint32_t b[2][4]; /* one in use, the next one on its way */

#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int n = 0; n < 2 * ATTENTION_STEPS; n++)
            s[i][n][0] = s[i][n][1] = s[i][n][2] = s[i][n][3] = 0;
    kv_keys<DIM16, FP8>(b[0], keys, 0, 0);
#pragma unroll 4 /* all 16 of 256 dimensions need more registers than they are worth */
    for (int k = 0; k < DIM16; k++) {
        uint32_t a[TILES][4];

#pragma unroll
        for (int i = 0; i < TILES; i++)
            query_fragment<DIM16>(a[i], queries, i, k);
#pragma unroll
        for (int n = 0; n < ATTENTION_STEPS; n++) {
            int next = k * ATTENTION_STEPS + n + 1;

            if (next < DIM16 * ATTENTION_STEPS)
                kv_keys<DIM16, FP8>(b[next % 2], keys, next % ATTENTION_STEPS,
                                    next / ATTENTION_STEPS);
#pragma unroll
            for (int i = 0; i < TILES; i++)
                mma_pair(s[i][2 * n], s[i][2 * n + 1], a[i], b[n % 2]);
        }
    }
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int n = 0; n < ATTENTION_STEPS; n++)
            kv_scale_scores<DIM16, FP8>(s[i][2 * n], s[i][2 * n + 1], keys, n);
}

/* The block's p of all pairs, from its keys. */
template <int DIM16, bool FP8, int TILES>
static __device__ __forceinline__ void
block_weights(uint32_t (&p)[TILES][ATTENTION_STEPS][4], prefill_state<DIM16> &state,
              const prefill_shared<DIM16> *shared, const uint8_t *queries, const uint8_t *keys,
              int token, const gpu_attention &op)
{
    const prefill_bounds *bounds = &shared->bounds[attention_warp()];
    int pair = attention_warp() * 16 * TILES + attention_lane() / 4;
    float s[TILES][2 * ATTENTION_STEPS][4];

    all_scores<DIM16, FP8, TILES>(s, queries, keys);
    if (token + GPU_KV_BLOCK - 1 > bounds->all_last || token < bounds->all_first)
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            const int pos[2] = {shared->pos[pair + 16 * i], shared->pos[pair + 16 * i + 8]};

#pragma unroll
            for (int n = 0; n < 2 * ATTENTION_STEPS; n++)
                attention_mask(s[i][n], token + 8 * n, pos, op.window);
        }
#pragma unroll
    for (int i = 0; i < TILES; i++)
        attention_soften(p[i], s[i], state.stats[i], state.o[i], op.scale * ATTENTION_LOG2E);
}

template <int DIM16, bool FP8, int TILES>
static __device__ __forceinline__ void add_values(prefill_state<DIM16> &state,
                                                  uint32_t (&p)[TILES][ATTENTION_STEPS][4],
                                                  const uint8_t *values)
{
    uint32_t b[2][4];

#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int n = 0; n < ATTENTION_STEPS; n++)
            kv_scale_weights<DIM16, FP8>(p[i][n], values, n);
    kv_values<DIM16, FP8>(b[0], values, 0, 0);
#pragma unroll
    for (int n = 0; n < ATTENTION_STEPS; n++)
#pragma unroll
        for (int c = 0; c < DIM16; c++) {
            int at = n * DIM16 + c, next = at + 1;

            if (next < ATTENTION_STEPS * DIM16)
                kv_values<DIM16, FP8>(b[next % 2], values, next / DIM16, next % DIM16);
#pragma unroll
            for (int i = 0; i < TILES; i++)
                mma_pair(state.o[i][2 * c], state.o[i][2 * c + 1], p[i][n], b[at % 2]);
        }
}

/* After the warp's last block of a split. */
template <int DIM16>
static __device__ __forceinline__ void end_split(prefill_state<DIM16> &state, float4 *saved,
                                                 const prefill_bounds *bounds, int block,
                                                 float scale)
{
    typedef prefill_shape<DIM16> shape;
    bool first = block / ATTENTION_SPLIT_BLOCKS == bounds->first / GPU_KV_SPLIT;
    bool last = block == bounds->last / GPU_KV_BLOCK;

    if (!last && (block + 1) % ATTENTION_SPLIT_BLOCKS != 0)
        return;
#pragma unroll
    for (int i = 0; i < shape::tiles; i++) {
        float4 *to = saved + i * (shape::columns + 1);

        attention_end_split(state.o[i], state.stats[i], to, first, scale);
        if (!last)
            attention_start_split(state.o[i], state.stats[i], to);
    }
}

template <int DIM16>
static __device__ __forceinline__ void prefill_store(const prefill_state<DIM16> &state,
                                                     const prefill_shared<DIM16> *shared,
                                                     const gpu_attention &op)
{
    typedef prefill_shape<DIM16> shape;
    int begin = attention_warp() * 16 * shape::tiles + attention_lane() / 4;

#pragma unroll
    for (int i = 0; i < 2 * shape::tiles; i++) {
        int pair = begin + 8 * i, h = i % 2;
        int64_t row = shared->pairs[pair].row, head = shared->pairs[pair].head;
        float reciprocal = 1.0f / state.stats[i / 2].sum[h];

        if (row < 0)
            continue;
#pragma unroll
        for (int c = 0; c < shape::columns; c++) {
            const float(&from)[4] = state.o[i / 2][c];

            result_pair(op.o + row * op.ldo + head * op.kv.head_dim,
                        8 * c + attention_lane() % 4 * 2, op.kv.head_dim,
                        bf16_pack(attention_result(from[2 * h], reciprocal),
                                  attention_result(from[2 * h + 1], reciprocal)));
        }
    }
}

template <int DIM16, bool FP8>
static __global__ void __launch_bounds__(PREFILL_THREADS, 2)
    prefill_kernel(gpu_rows rows, gpu_attention op, int page_shift, int n_tiles)
{
    typedef prefill_shape<DIM16> shape;
    typedef typename prefill_tiles<DIM16, FP8>::ring tiles;
    GPU_SHARED(queries);
    uint8_t *ring = queries + shape::query_bytes;
    prefill_shared<DIM16> *shared = (prefill_shared<DIM16> *)(ring + tiles::bytes);
    const prefill_bounds *bounds = &shared->bounds[attention_warp()];
    float4 totals[shape::tiles * (shape::columns + 1)], *saved = kept_in_memory(totals);
    prefill_state<DIM16> state;
    prefill_job job;

    if (!find_job(job, rows, op, page_shift, n_tiles, shape::pairs))
        return;
    find_pairs(shared, job);
    fetch_queries(queries, shared, op);
    tiles::start(ring, job.kv);
    prefill_start(state, shared, rows, job, op.window);
    for (int block = kv_first_block(job.kv), i = 0; block <= kv_last_block(job.kv); block++) {
        int token = block * GPU_KV_BLOCK;
        uint32_t p[shape::tiles][ATTENTION_STEPS][4];
        const uint8_t *tile = tiles::next(ring, job.kv, i++);
        bool seen = token <= bounds->last && token + GPU_KV_BLOCK > bounds->first;

        if (seen)
            block_weights<DIM16, FP8, shape::tiles>(p, state, shared, queries, tile, token, op);
        tile = tiles::next(ring, job.kv, i++);
        if (seen) {
            add_values<DIM16, FP8, shape::tiles>(state, p, tile);
            end_split(state, saved, bounds, block, op.scale * ATTENTION_LOG2E);
        }
    }
    copy_async_wait<0>();
    prefill_store(state, shared, op);
}

template <int DIM16, bool FP8>
static cudaError_t prefill_launch(const gpu_rows *rows, const gpu_attention *op, int n_tiles,
                                  cudaStream_t stream)
{
    int chunks = prefill_chunks(op->n_heads / op->kv.n_kv_heads, prefill_shape<DIM16>::pairs);

    return gpu_launch(prefill_kernel<DIM16, FP8>,
                      dim3((unsigned)(n_tiles * op->kv.n_kv_heads * chunks)), dim3(PREFILL_THREADS),
                      prefill_memory<DIM16, FP8>::bytes, stream, *rows, *op,
                      attention_page_shift(op), n_tiles);
}

extern "C" cudaError_t gpu_attention_prefill(const gpu_rows *rows, const gpu_attention *op,
                                             int n_tiles, cudaStream_t stream)
{
    cudaError_t code;

    if (n_tiles == 0)
        return cudaSuccess;
    ATTENTION_LAUNCH(code, prefill_launch, op->kv, rows, op, n_tiles, stream);
    return code;
}
