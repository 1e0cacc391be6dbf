/*
 * linear_ring.cuh: the sums of a block of 128 features x TOKENS tokens. Eight warps share a ring of
 * stages in shared memory: packed weights as they are, and x.
 */
#ifndef OL_LINEAR_RING_CUH
#define OL_LINEAR_RING_CUH

#include "kernels/linear.cuh"
#include "kernels/linear_weight.cuh"

#define TILE_WARPS 8
#define TILE_THREADS (TILE_WARPS * WARP)
#define TILE_MASK 24 /* of linear_sums in shared memory */

/* A warp has `tiles` units and `groups` x 8 tokens of the block's. */
template <int KIND, int TOKENS> struct shape {
    static const int tiles = TOKENS == 256 ? 4 : TOKENS >= 64 ? 2 : 1;
    static const int groups = TOKENS >= 128 ? 8 : TOKENS >= 32 ? 4 : 2;
    static const int warps_across = TOKENS / (groups * 8);
    /* of a stage */
    static const int cols = TOKENS == 256 && KIND == GPU_BF16 ? 32 : 64;
    static const int pieces = cols / 16 / weight<KIND>::tiles;
    static const int x_bytes = TOKENS * cols * 2;
    static const int unit_bytes = pieces * PIECE_BYTES;
    static const int scales_at = x_bytes + TILE_UNITS * unit_bytes;
    static const int scale_bytes = weight<KIND>::scale_bytes;
    static const int bytes = scales_at + TILE_UNITS * scale_bytes;
    /* 3 blocks on a multiprocessor of 227 KiB, for many tokens what the smallest ones have;
     * with 256 there are the sums besides */
    static const int room = TOKENS <= 64 ? 72 * 1024 : TOKENS == 128 ? 99 * 1024 : 96 * 1024;
    static const int stages = room / bytes < 8 ? room / bytes : 8;
    static const int sum_floats = TOKENS * TILE_FEATURES;
    static const bool shared_totals = TOKENS == 256;
    static const int shared =
        stages * bytes + (shared_totals ? sum_floats * (int)sizeof(float) : 0);
    static_assert(shared <= (shared_totals ? WALK_FAR_SHARED : GPU_SHARED_ANYWHERE),
                  "a block has more shared memory than where it is launched");
};

/* What a block reads, and where this thread's part of it starts. */
struct tile_source {
    const uint16_t *x;
    int64_t ldx;
    int n_tokens;
    const uint8_t *weights, *scales; /* of the unit that the warp loads */
    bool real;                       /* whether there is such a unit */
};

template <int KIND, int TOKENS>
static __device__ __forceinline__ tile_source find_source(const linear_args &args,
                                                          const linear_place &place, int first_row,
                                                          int n_tokens)
{
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    const gpu_matrix &w = args.op.parts[unit_part(args, place, TILE_UNITS, warp)].w;
    int row_tile = unit_row_tile(args, place, TILE_UNITS, warp);
    tile_source source;
    int64_t at;

    source.real = row_tile < row_tiles_of(w);
    at = (int64_t)row_tile * depth_of(w);
    source.x = args.op.x + first_row * args.op.ldx;
    source.ldx = args.op.ldx;
    source.n_tokens = n_tokens;
    source.weights =
        (const uint8_t *)w.data + at * (weight<KIND>::pieces * PIECE_BYTES) + lane * 16;
    source.scales = (const uint8_t *)w.scales + at * weight<KIND>::scale_bytes + lane % 8 * 16;
    return source;
}

/* Where 8 columns of a token are in a stage: eight tokens of a column in eight places of 128. */
template <int COLS> static __device__ __forceinline__ int x_offset(int token, int chunk)
{
    if (COLS == 64)
        return token * 128 + (chunk ^ (token & 7)) * 16;
    return token * 64 + (chunk ^ (token >> 1 & 3)) * 16;
}

/* The thread's part of stage `step` of the matrix, below `end`: of the weights, and of x with their
 * scales. What there is no token or unit for stays as it is: so do its results, which nobody
 * reads. */
template <int KIND, int TOKENS>
static __device__ __forceinline__ void fetch_weights(const tile_source &source, int step, int end,
                                                     uint8_t *stage)
{
    typedef shape<KIND, TOKENS> S;
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;

    if (step < end && source.real)
#pragma unroll
        for (int i = 0; i < S::pieces; i++)
            copy_async16(stage + S::x_bytes + warp * S::unit_bytes + i * PIECE_BYTES + lane * 16,
                         source.weights + ((int64_t)step * S::pieces + i) * PIECE_BYTES, true);
}

template <int KIND, int TOKENS>
static __device__ __forceinline__ void fetch_x(const tile_source &source, int step, int end,
                                               uint8_t *stage)
{
    typedef shape<KIND, TOKENS> S;
    const int row = S::cols / 8, rows = TILE_THREADS / row; /* chunks of a token; tokens at once */
    int thread = (int)threadIdx.x, warp = thread / WARP, lane = thread % WARP;
    int chunk = thread % row;

    if (step >= end)
        return;
#pragma unroll
    for (int i = 0, token = thread / row; i < (TOKENS + rows - 1) / rows; i++, token += rows)
        if (token < source.n_tokens) /* of TOKENS at most */
            copy_async16(stage + x_offset<S::cols>(token, chunk),
                         source.x + token * source.ldx + step * S::cols + chunk * 8, true);
    if (S::scale_bytes > 0 && source.real && lane < S::scale_bytes / 16)
        copy_async16(stage + S::scales_at + warp * S::scale_bytes + lane * 16,
                     source.scales + (int64_t)step * S::scale_bytes, true);
}

template <int KIND, int TOKENS> struct tile_sums {
    float c[shape<KIND, TOKENS>::tiles][shape<KIND, TOKENS>::groups][4];
};

/* What a warp multiplies next: 16 columns of its tokens as B; the pieces that have those of its
 * units, and their scales. */
template <int KIND, int TOKENS> struct tile_operands {
    uint32_t b[shape<KIND, TOKENS>::groups][2];
    uint4 piece[shape<KIND, TOKENS>::tiles];
    weight_scales scale[shape<KIND, TOKENS>::tiles];
};

/* Columns 16 k .. of a stage: what is not there yet. */
template <int KIND, int TOKENS>
static __device__ __forceinline__ void load_operands(tile_operands<KIND, TOKENS> &to,
                                                     const uint8_t *stage, int k)
{
    typedef shape<KIND, TOKENS> S;
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    int across = warp % S::warps_across, unit = warp / S::warps_across * S::tiles;
    const uint8_t *weights = stage + S::x_bytes + unit * S::unit_bytes + lane * 16;
    const uint8_t *scales = stage + S::scales_at + unit * S::scale_bytes;
    /* of chunk 2 k of the first tokens: others' are so many tokens further */
    int x_at = x_offset<S::cols>((across * S::groups + lane / 16) * 8 + lane % 8, lane / 8 % 2);

#pragma unroll
    for (int i = 0; i < S::groups; i += 2) {
        uint32_t r[4];

        load_matrix4(r, stage + (x_at ^ k * 32) + i * 8 * S::cols * 2);
        to.b[i][0] = r[0], to.b[i][1] = r[1];
        to.b[i + 1][0] = r[2], to.b[i + 1][1] = r[3];
    }
#pragma unroll
    for (int i = 0; i < S::tiles; i++) {
        if (k % weight<KIND>::tiles == 0)
            to.piece[i] = *(const uint4 *)(weights + i * S::unit_bytes +
                                           k / weight<KIND>::tiles * PIECE_BYTES);
        if (weight<KIND>::scaled && k % 2 == 0)
            to.scale[i] = load_scales<KIND>(scales + i * S::scale_bytes, k / 2);
    }
}

/* One warp's product of 16 columns. */
template <int KIND, int TOKENS>
static __device__ __forceinline__ void multiply(tile_sums<KIND, TOKENS> &sums,
                                                const uint32_t (&a)[shape<KIND, TOKENS>::tiles][4],
                                                const uint32_t (&b)[shape<KIND, TOKENS>::groups][2])
{
#pragma unroll
    for (int i = 0; i < shape<KIND, TOKENS>::tiles; i++)
#pragma unroll
        for (int j = 0; j < shape<KIND, TOKENS>::groups; j++)
            mma_bf16(sums.c[i][j], a[i], b[j]);
}

template <int KIND, int TOKENS>
static __device__ __forceinline__ void clear(tile_sums<KIND, TOKENS> &sums)
{
#pragma unroll
    for (int i = 0; i < shape<KIND, TOKENS>::tiles; i++)
#pragma unroll
        for (int j = 0; j < shape<KIND, TOKENS>::groups; j++)
            sums.c[i][j][0] = sums.c[i][j][1] = sums.c[i][j][2] = sums.c[i][j][3] = 0;
}

template <int KIND, int TOKENS>
static __device__ __forceinline__ void add_sums(tile_sums<KIND, TOKENS> &to,
                                                const tile_sums<KIND, TOKENS> &sums)
{
#pragma unroll
    for (int i = 0; i < shape<KIND, TOKENS>::tiles; i++)
#pragma unroll
        for (int j = 0; j < shape<KIND, TOKENS>::groups; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                to.c[i][j][e] += sums.c[i][j][e];
}

/*
 * A ring of stages over the block's columns, all but the one being multiplied under way. At the end
 * nothing is, and no warp reads the ring any more. EARLY: while a warp multiplies 16 columns it
 * loads the operands of the next ones, also across the barrier behind which the next stage is.
 * That takes registers; where other blocks are on the multiprocessor they fill the gap.
 */
template <int KIND, int TOKENS, bool EARLY> struct pipeline {
    typedef shape<KIND, TOKENS> S;
    tile_source source;
    tile_operands<KIND, TOKENS> next;
    uint8_t *ring;
    int step, end; /* the next stage, and where the matrix, or the run, ends */

    __device__ __forceinline__ uint8_t *at(int stage)
    {
        return ring + stage % S::stages * S::bytes;
    }

    /* Stage `stage` has come, and all warps have left the one before, whose place is used. */
    __device__ __forceinline__ void enter(int stage)
    {
        copy_async_wait<S::stages - 2>();
        __syncthreads();
        fetch_x<KIND, TOKENS>(source, stage + S::stages - 1, end, at(stage + S::stages - 1));
        fetch_weights<KIND, TOKENS>(source, stage + S::stages - 1, end, at(stage + S::stages - 1));
        copy_async_commit(); /* also if there is none */
        if (EARLY && stage < end)
            load_operands<KIND, TOKENS>(next, at(stage), 0);
    }

    /* Weights do not wait for the kernel before. */
    __device__ __forceinline__ void start(int from, int to)
    {
        step = from;
        end = to;
#pragma unroll
        for (int i = 0; i < S::stages - 1; i++)
            fetch_weights<KIND, TOKENS>(source, from + i, to, at(from + i));
        wait_for_previous();
#pragma unroll
        for (int i = 0; i < S::stages - 1; i++) {
            fetch_x<KIND, TOKENS>(source, from + i, to, at(from + i));
            copy_async_commit();
        }
        enter(from);
    }

    __device__ __forceinline__ void sum_until(tile_sums<KIND, TOKENS> &sums, int to)
    {
        for (; step < to; step++) {
#pragma unroll
            for (int k = 0; k < S::cols / 16; k++) {
                uint32_t a[S::tiles][4], b[S::groups][2];

                if (!EARLY)
                    load_operands<KIND, TOKENS>(next, at(step), k);
#pragma unroll
                for (int i = 0; i < S::tiles; i++)
                    fragment<KIND>(a[i], next.piece[i], k % weight<KIND>::tiles, next.scale[i]);
#pragma unroll
                for (int j = 0; j < S::groups; j++)
                    b[j][0] = next.b[j][0], b[j][1] = next.b[j][1];
                if (k + 1 == S::cols / 16)
                    enter(step + 1);
                else if (EARLY)
                    load_operands<KIND, TOKENS>(next, at(step), k + 1);
                multiply<KIND, TOKENS>(sums, a, b);
            }
        }
    }
};

#endif
