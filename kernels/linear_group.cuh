/*
 * linear_group.cuh: the product for prefill where groups of warps multiply together (group.cuh):
 * tiles of 128 features x TOKENS tokens as walk_kernel's, and the same bits; a block takes one
 * after the other.
 *
 * Two groups multiply, 64 features each, 16 of them (a unit) a warp. Weights come from memory
 * straight into registers, as they are stored in the order of fragments, some stages of 64 columns
 * ahead. A third group copies x, which all features share, into a ring of stages in shared memory.
 * Each stage has two barriers: it has come, it was read. Nothing else holds the groups together, so
 * one multiplies while the other adds a run to the totals; these are in shared memory, as sums and
 * totals are more than there are registers.
 *
 * Adapters: where all tokens of a tile have the same ones, as within a long prompt, h comes as
 * more stages and B as more weights. Elsewhere warps take eight tokens after eight
 * (linear_lora.cuh).
 */
#ifndef OL_LINEAR_GROUP_CUH
#define OL_LINEAR_GROUP_CUH

#include "kernels/linear_group_ring.cuh"

#ifdef GROUP_PRODUCTS

/* -- multiplying ----------------------------------------------------------------------------------
 * A stage after the other; sums that a run has come to are added to the totals. */

#define WEIGHTS_AHEAD 3 /* stages of them in registers, or on their way */

/* 64 columns of a unit: as they are stored, a lane's. */
template <int KIND> struct raw_weights {
    uint4 piece[weight<KIND>::pieces];
    uint32_t scale[2][2]; /* of 32 columns each: of rows g, g + 8 */
};

/* A warp's unit, and where this lane's share of its weights starts. */
struct group_unit {
    int part, row_tile; /* which may be one behind the part's last */
    int clamped;        /* the last one then: its results are not used */
    const uint8_t *weights, *scales;
};

template <int KIND>
static __device__ __forceinline__ group_unit find_unit(const linear_args &args,
                                                       const linear_place &place)
{
    int unit = for_all_lanes((int)threadIdx.x / WARP), lane = (int)threadIdx.x % WARP;
    group_unit u;
    int64_t at;

    u.part = unit_part(args, place, TILE_UNITS, unit);
    u.row_tile = unit_row_tile(args, place, TILE_UNITS, unit);

    const gpu_matrix &w = args.op.parts[u.part].w;

    u.clamped = min(u.row_tile, row_tiles_of(w) - 1);
    at = (int64_t)u.clamped * depth_of(w);
    u.weights = (const uint8_t *)w.data + at * (weight<KIND>::pieces * PIECE_BYTES) + lane * 16;
    u.scales = (const uint8_t *)w.scales + at * weight<KIND>::scale_bytes +
               lane / 4 * weight<KIND>::scale_each;
    return u;
}

template <int KIND>
static __device__ __forceinline__ void load_raw(raw_weights<KIND> &to, const group_unit &unit,
                                                int step, int end)
{
    step = min(step, end - 1); /* behind the last one it is loaded once more */
#pragma unroll
    for (int i = 0; i < weight<KIND>::pieces; i++)
        to.piece[i] =
            load_once(unit.weights + ((int64_t)step * weight<KIND>::pieces + i) * PIECE_BYTES);
    if (weight<KIND>::scaled)
#pragma unroll
        for (int i = 0; i < 4; i++)
            to.scale[i / 2][i % 2] =
                stored_scale<KIND>(unit.scales + (int64_t)step * weight<KIND>::scale_bytes +
                                   i * 8 * weight<KIND>::scale_each);
}

template <int KIND>
static __device__ __forceinline__ void fragments(uint32_t (&a)[4][4], const raw_weights<KIND> &raw)
{
#pragma unroll
    for (int k = 0; k < 4; k++) {
        weight_scales s = {};

        if (weight<KIND>::scaled)
            s = scales_of<KIND>(raw.scale[k / 2][0], raw.scale[k / 2][1]);
        fragment<KIND>(a[k], raw.piece[k / weight<KIND>::tiles], k % weight<KIND>::tiles, s);
    }
}

/* Asks for the products of a stage, of all its columns. */
template <int N>
static __device__ __forceinline__ void multiply_stage(float (&c)[N][4], uint32_t (&a)[4][4],
                                                      const uint8_t *stage)
{
    uint64_t b = group_tile(stage);

    group_hold(c);
    group_hold(a);
    group_begin();
#pragma unroll
    for (int k = 0; k < 4; k++)
        group_multiply(c, a[k], b + 2 * k);
    group_commit();
}

template <int N>
static __device__ __forceinline__ void wait_for_stage(float (&c)[N][4], uint32_t (&a)[4][4])
{
    group_wait<0>();
    group_hold(c);
    group_hold(a);
}

/* Of its first n 16s of columns, each on its own: ptxas wants to see what belongs together. */
template <int N>
static __device__ __forceinline__ void multiply_part(float (&c)[N][4], uint32_t (&a)[4][4],
                                                     const uint8_t *stage, int n)
{
#pragma unroll
    for (int k = 0; k < 4; k++)
        if (k < n) {
            group_hold(c);
            group_hold(a);
            group_begin();
            group_multiply(c, a[k], group_tile(stage) + 2 * k);
            group_commit();
            wait_for_stage(c, a);
        }
}

/* The ring from the side that reads it: stage after stage. */
template <int TOKENS> struct group_reader {
    typedef group_shape<TOKENS> S;
    group_memory<TOKENS> memory;
    int slot, parity;

    __device__ __forceinline__ const uint8_t *begin()
    {
        barrier_wait(memory.has_come(slot), parity);
        return memory.ring + slot * S::stage;
    }
    __device__ __forceinline__ void end()
    {
        warp_arrives(memory.was_read(slot));
        if (++slot == S::stages) {
            slot = 0;
            parity ^= 1;
        }
    }
};

/* Calls what(sum, total) for each of a lane's, the numbers of a unit. */
template <int N, typename F>
static __device__ __forceinline__ void each_total(float (&c)[N][4], float *totals, F what)
{
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int unit = (int)threadIdx.x / WARP;

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float *to = totals + sum_index(2 * t, unit * 16 + g + half * 8, TILE_FEATURES, TILE_MASK);

#pragma unroll
        for (int j = 0; j < N; j++) {
            what(c[j][half * 2], to[j * 8 * TILE_FEATURES], half);
            what(c[j][half * 2 + 1], to[(j * 8 + 1) * TILE_FEATURES], half);
        }
    }
}

/* A run is summed: it is part of the totals then, and the sums are zero. */
template <int N>
static __device__ __forceinline__ void add_run(float (&c)[N][4], float *totals, bool first)
{
    if (first)
        each_total(c, totals, [](float &sum, float &total, int) {
            total = sum;
            sum = 0;
        });
    else
        each_total(c, totals, [](float &sum, float &total, int) {
            total += sum;
            sum = 0;
        });
}

template <int KIND, int TOKENS>
static __device__ __forceinline__ void
multiply_runs(const group_tile_job<TOKENS> &job, const group_unit &unit,
              group_reader<TOKENS> &reader, float (&c)[TOKENS / 8][4])
{
    const gpu_matrix &w = job.args.op.parts[unit.part].w;
    int depth = depth_of(w), run_depth = run_depth_of(w), run_end = min(run_depth, depth), run = 0;
    raw_weights<KIND> raw[WEIGHTS_AHEAD];

#pragma unroll
    for (int i = 0; i < WEIGHTS_AHEAD; i++)
        load_raw<KIND>(raw[i], unit, i, depth);
#pragma unroll
    for (int j = 0; j < TOKENS / 8; j++)
        c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0;
    for (int first = 0; first < depth; first += WEIGHTS_AHEAD)
#pragma unroll
        for (int i = 0; i < WEIGHTS_AHEAD; i++)
            if (first + i < depth) {
                const uint8_t *stage = reader.begin();
                uint32_t a[4][4];

                fragments<KIND>(a, raw[i]);
                multiply_stage(c, a, stage);
                wait_for_stage(c, a);
                reader.end();
                /* not before: the registers are A's */
                load_raw<KIND>(raw[i], unit, first + i + WEIGHTS_AHEAD, depth);
                if (first + i + 1 == run_end) {
                    add_run(c, job.memory.totals(), run++ == 0);
                    run_end = min(run_end + run_depth, depth);
                }
            }
    for (; run < w.splits; run++) /* without columns */
        add_run(c, job.memory.totals(), run == 0);
}

/* -- the adapters' share --------------------------------------------------------------------------
 * Is added to the totals, which have scales and bias then. */

static __device__ __forceinline__ void add_share(float &total, float share,
                                                 const gpu_linear_part &part, int feature)
{
    if (feature < part.w.rows)
        total = scaled_sum(part, total, feature) + share;
}

/* Where lists are alike: as another run. */
template <int TOKENS>
static __device__ __forceinline__ void
share_alike(const group_tile_job<TOKENS> &job, const group_unit &unit, group_reader<TOKENS> &reader,
            float (&c)[TOKENS / 8][4])
{
    const gpu_linear_part &p = job.args.op.parts[unit.part];
    int lane = (int)threadIdx.x % WARP, feature = unit.row_tile * 16 + lane / 4;

    each_h_stage(job, [&](int part, const lora_entry &e, int, int k) {
        const uint8_t *stage = reader.begin();

        if (part == unit.part) {
            const gpu_rows &rows = job.args.rows;
            const uint8_t *from = (const uint8_t *)e.b +
                                  ((int64_t)unit.clamped * e.k_tiles + k) * b_tile_bytes(rows) +
                                  lane * b_lane_bytes(rows);
            int n = min(e.k_tiles - k, 4);
            uint32_t a[4][4];

#pragma unroll
            for (int i = 0; i < 4; i++)
                b_tile(a[i], rows, load_b(rows, from + min(i, n - 1) * b_tile_bytes(rows)));
            multiply_part(c, a, stage, n);
        }
        reader.end();
    });
    each_total(c, job.memory.totals(), [&](float &share, float &total, int half) {
        add_share(total, share, p, feature + half * 8);
    });
}

/* Where they are not: eight tokens after eight. The ring is free, and has room for the tables. */
template <int TOKENS>
static __device__ void share_by_eights(const group_tile_job<TOKENS> &job, const group_unit &unit)
{
    const linear_args &args = job.args;
    const gpu_linear_part &p = args.op.parts[unit.part];
    int group = (int)threadIdx.x / GROUP, warp = (int)threadIdx.x / WARP;
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int end_row = job.first_row + job.n_tokens;
    lora_entry *table = (lora_entry *)job.memory.ring + group * TOKENS;
    lora_entry *spare = (lora_entry *)job.memory.ring + 2 * TOKENS + warp * 8;

    sync_some(BUSY_BARRIER, GROUP_BUSY);
    for (int i = (int)threadIdx.x % GROUP; i < TOKENS; i += GROUP)
        table[i] = i < job.n_tokens
                       ? find_entry(args, p.module, member_row(args, job.first_row + i), 0)
                       : lora_entry{NULL, 0, 0};
    sync_some(GROUP_BARRIER + group, GROUP);
    for (int first = 0; first < job.n_tokens; first += 8) {
        float d[1][4];

        adapters_share<1>(d, args, unit.part, unit.row_tile, job.first_row + first, end_row,
                          table + first, spare);
#pragma unroll
        for (int e = 0; e < 4; e++)
            add_share(
                job.memory.totals()[sum_index(first + 2 * t + e % 2, warp * 16 + g + e / 2 * 8,
                                              TILE_FEATURES, TILE_MASK)],
                d[0][e], p, unit.row_tile * 16 + g + e / 2 * 8);
    }
}

/* -- from totals to y -----------------------------------------------------------------------------
 * By all who multiply, tokens in their order. */

#define FINISH_AHEAD 4 /* rows of y that a thread asks for before it adds to them */

/* As finish(), by those who multiply. */
template <int TOKENS>
static __device__ __forceinline__ void finish_tile(const group_tile_job<TOKENS> &job, bool adapters)
{
    const gpu_linear &op = job.args.op;
    const gpu_linear_part &part = op.parts[job.place.part];
    linear_sums sums = {job.memory.totals(), TILE_FEATURES, TILE_MASK, 0, 1, NULL, !adapters};
    const int fours = TILE_FEATURES / 4, stride = GROUP_BUSY / fours;
    int width = width_of(job.args, TILE_UNITS);
    int at = (int)threadIdx.x % fours * 4, feature = job.place.row_tile * 16 + at;
    int64_t column = job.place.column + feature;
    float *y = (float *)op.y + job.first_row * op.ldy + column;

    if (op.finish != GPU_ADD_F32 || column % 4 || op.ldy % 4 || feature + 4 > part.w.rows) {
        for (int i = (int)threadIdx.x; i < job.n_tokens * (width / 4); i += GROUP_BUSY)
            finish4(job.args, job.place, width, sums, job.first_row, i);
        return;
    }
    for (int i = (int)threadIdx.x / fours; i < job.n_tokens; i += stride * FINISH_AHEAD) {
        float4 was[FINISH_AHEAD];

#pragma unroll
        for (int j = 0; j < FINISH_AHEAD; j++)
            was[j] = *(const float4 *)(y + min(i + j * stride, job.n_tokens - 1) * op.ldy);
#pragma unroll
        for (int j = 0; j < FINISH_AHEAD; j++)
            if (i + j * stride < job.n_tokens) {
                add4(was[j], whole_sum(sums, part, i + j * stride, at, feature));
                *(float4 *)(y + (i + j * stride) * op.ldy) = was[j];
            }
    }
}

template <int KIND, int TOKENS>
static __device__ __forceinline__ void multiply_tile(const group_tile_job<TOKENS> &job,
                                                     group_reader<TOKENS> &reader)
{
    bool adapters = adapters_apply(job.args);
    group_unit unit = find_unit<KIND>(job.args, job.place);
    float c[TOKENS / 8][4];

    if (adapters)
        compare_lists(job);
    multiply_runs<KIND, TOKENS>(job, unit, reader, c);
    if (adapters) {
        if (threadIdx.x == 0) /* who copies has seen it, or else this tile's stages were not here */
            *job.memory.alike(job.number + 1) = 1;
        if (lists_alike(job))
            share_alike(job, unit, reader, c);
        else
            share_by_eights(job, unit);
    }
    sync_some(BUSY_BARRIER, GROUP_BUSY);
    finish_tile(job, adapters);
    sync_some(BUSY_BARRIER, GROUP_BUSY); /* the totals are free */
    if (adapters)
        warp_arrives(job.memory.finished());
}
#endif

/* Blocks: as many as run at once; each takes tile after tile. */
template <int KIND, int TOKENS>
static __global__ void __launch_bounds__(GROUP_THREADS, 1)
    group_kernel(const __grid_constant__ linear_args args)
{
#ifdef GROUP_PRODUCTS
    GPU_SHARED(shared);
    group_memory<TOKENS> memory = {shared};

    if (threadIdx.x == 0)
        make_barriers(memory);
    __syncthreads();
    if (for_all_lanes((int)threadIdx.x / GROUP) < GROUP_BUSY / GROUP) {
        group_reader<TOKENS> reader = {memory, 0, 0};

        take_registers<224>();
        each_job(args, memory, [&](const group_tile_job<TOKENS> &job) {
            multiply_tile<KIND, TOKENS>(job, reader);
        });
    } else {
        give_registers<56>();
        copy_all(args, memory);
    }
#endif
}

template <int KIND, int TOKENS>
static cudaError_t launch_group(const linear_args *args, int n_rows, cudaStream_t stream)
{
    int64_t tiles = (int64_t)((n_rows + TOKENS - 1) / TOKENS) * args->n_tiles;

    return gpu_launch(group_kernel<KIND, TOKENS>,
                      dim3((unsigned)(tiles < args->at_once ? tiles : args->at_once)),
                      dim3(GROUP_THREADS), (size_t)group_shape<TOKENS>::shared, stream, *args);
}

#endif
