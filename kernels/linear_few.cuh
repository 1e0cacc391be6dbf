/*
 * linear_few.cuh: the product for up to 8 rows, where reading the weights is all that counts.
 *
 * A warp takes one run of one unit's columns and needs nobody until it is done: its weights go
 * from global memory to registers, DEPTH 64s of columns ahead, x and the scales through
 * a ring of its own in shared memory. All runs of a unit are in one block, which then adds
 * them up. Columns of the product that are no token's are whatever they are: nobody reads them.
 * One more warp sees to the adapters meanwhile, as what it does is mostly waiting.
 */
#ifndef OL_LINEAR_FEW_CUH
#define OL_LINEAR_FEW_CUH

#include "kernels/linear.cuh"
#include "kernels/linear_lora.cuh"
#include "kernels/linear_weight.cuh"

#define FEW_TOKENS 8
#define FEW_MAX_WARPS 8 /* that multiply */
#define FEW_RING 4
/* [run or delta][token][16 of each unit] */
#define FEW_SUM_BYTES(units, runs) ((units) * (runs)*FEW_TOKENS * 16 * 4)
#define FEW_TABLE_BYTES (2 * FEW_TOKENS * (int)sizeof(lora_entry))

/* Units of a block: as many as `warps` have work for. Those of SwiGLU are pairs. */
static __host__ __device__ __forceinline__ int few_units(int splits, bool swiglu, int warps)
{
    int work = swiglu ? 2 * splits : splits;

    return (swiglu ? 2 : 1) * (warps > work ? warps / work : 1);
}

template <int KIND> struct few {
    /* Every warp reads x for itself: with more rows that is more than the weights of few bits. */
    static const int tokens = KIND == GPU_BF16 ? FEW_TOKENS : FEW_TOKENS / 2;
    static const int x_bytes = tokens * 128;
    static const int scale_bytes = weight<KIND>::scale_bytes;
    static const int stage_bytes = x_bytes + scale_bytes;
    static const int ring_bytes = (FEW_RING * stage_bytes + 127) / 128 * 128;
    static const int depth = 8 / weight<KIND>::pieces;           /* 8 loads of 16 bytes under way */
    static const int turn = depth > FEW_RING ? depth : FEW_RING; /* stages of an iteration */
    static const int weight_bytes = weight<KIND>::pieces * PIECE_BYTES; /* of a stage */
};

/* What a lane reads of one run of a unit. Stages count from where the pointers are, which move
 * on once an iteration: all else is constants. */
struct few_run {
    const uint8_t *weights, *scales;
    const uint8_t *x;           /* 8 columns of token lane / 8, the last one where there is none */
    int next;                   /* from there to token lane / 8 + 4 */
    int n;                      /* 64s of columns that are left */
    shared_place put, put_next; /* where the lane puts its x of stage 0 */
    shared_place put_scales;    /* and its part of the scales */
    shared_place take[2];       /* the row of a matrix that it names there, for either half */
    const uint8_t *scales_of_stage; /* where the scales are */
};

template <int KIND>
static __device__ __forceinline__ few_run find_run(const linear_args &args, const gpu_matrix &w,
                                                   int row_tile, int run, int n_tokens,
                                                   uint8_t *ring)
{
    int depth = depth_of(w), first = run * run_depth_of(w);
    int64_t at = (int64_t)row_tile * depth + first;
    int lane = (int)threadIdx.x % WARP, token = lane / 8, chunk = lane % 8;
    int row = lane % few<KIND>::tokens, from = min(token, n_tokens - 1);
    few_run r;

    r.weights = (const uint8_t *)w.data + at * few<KIND>::weight_bytes + lane * 16;
    r.scales = (const uint8_t *)w.scales + at * few<KIND>::scale_bytes + lane % 8 * 16;
    r.x = (const uint8_t *)(args.op.x + from * args.op.ldx + first * 64) + chunk * 16;
    r.next = (min(token + 4, n_tokens - 1) - from) * (int)args.op.ldx * 2;
    r.n = max(0, min(run_depth_of(w), depth - first));
    r.put = shared_place_of(ring + token * 128 + (chunk ^ token) * 16);
    r.put_next = shared_place_of(ring + (token + 4) * 128 + (chunk ^ (token + 4)) * 16);
    r.put_scales = shared_place_of(ring + few<KIND>::x_bytes + lane % 8 * 16);
    r.take[0] = shared_place_of(ring + row * 128 + (token ^ row) * 16);
    r.take[1] = shared_place_of(ring + row * 128 + ((token + 4) ^ row) * 16);
    r.scales_of_stage = ring + few<KIND>::x_bytes;
    return r;
}

/* Stage `stage` of x and of the scales into place `slot` of the ring; a group of copies even if
 * there is none. */
template <int KIND>
static __device__ __forceinline__ void fetch_x(const few_run &run, int stage, int slot)
{
    int at = slot * few<KIND>::stage_bytes, lane = (int)threadIdx.x % WARP;

    if (stage < run.n) {
        copy_async16_at(run.put + at, run.x + stage * 128);
        if (few<KIND>::tokens > 4)
            copy_async16_at(run.put_next + at, run.x + run.next + stage * 128);
        if (few<KIND>::scale_bytes > 0 && lane < few<KIND>::scale_bytes / 16)
            copy_async16_at(run.put_scales + at, run.scales + stage * few<KIND>::scale_bytes);
    }
    copy_async_commit();
}

template <int KIND, bool EARLY>
static __device__ __forceinline__ void fetch_weights(uint4 (&piece)[weight<KIND>::pieces],
                                                     const few_run &run, int stage)
{
    if (stage < run.n)
#pragma unroll
        for (int i = 0; i < weight<KIND>::pieces; i++) {
            const uint8_t *from = run.weights + stage * few<KIND>::weight_bytes + i * PIECE_BYTES;

            piece[i] = EARLY ? load_once_early(from) : load_once(from);
        }
}

/* c += 64 columns. */
template <int KIND>
static __device__ __forceinline__ void multiply_stage(float (&c)[4],
                                                      const uint4 (&piece)[weight<KIND>::pieces],
                                                      const few_run &run, int slot)
{
    int at = slot * few<KIND>::stage_bytes;

#pragma unroll
    for (int half = 0; half < 2; half++) {
        weight_scales s = {};
        uint32_t x[4];

        if (weight<KIND>::scaled)
            s = load_scales<KIND>(run.scales_of_stage + at, half);
        load_matrix4_at(x, run.take[half] + at);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int tile = half * 2 + i;
            uint32_t a[4], b[2] = {x[2 * i], x[2 * i + 1]};

            fragment<KIND>(a, piece[tile / weight<KIND>::tiles], tile % weight<KIND>::tiles, s);
            mma_bf16(c, a, b);
        }
    }
}

template <int KIND> static __device__ __forceinline__ void sum_run(float (&c)[4], few_run run)
{
    const int depth = few<KIND>::depth, turn = few<KIND>::turn;
    uint4 piece[depth][weight<KIND>::pieces];

    __syncwarp(); /* a run before this one has left the ring */
#pragma unroll
    for (int i = 0; i < depth; i++)
        fetch_weights<KIND, true>(piece[i], run, i);
    wait_for_previous(); /* for x: the weights were there before */
#pragma unroll
    for (int i = 0; i < FEW_RING - 1; i++)
        fetch_x<KIND>(run, i, i);
    for (; run.n > 0; run.n -= turn) {
#pragma unroll
        for (int i = 0; i < turn; i++) {
            if (i >= run.n)
                break;
            copy_async_wait<FEW_RING - 2>();
            __syncwarp();
            fetch_x<KIND>(run, i + FEW_RING - 1, (i + FEW_RING - 1) % FEW_RING);
            multiply_stage<KIND>(c, piece[i % depth], run, i % FEW_RING);
            fetch_weights<KIND, false>(piece[i % depth], run, i + depth);
        }
        run.weights += turn * few<KIND>::weight_bytes;
        run.scales += turn * few<KIND>::scale_bytes;
        run.x += turn * 128;
    }
}

/* A warp's share of a unit's results: features down, tokens across. */
static __device__ __forceinline__ void put_results(float *to, int ld, const float (&c)[4])
{
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;

    to[2 * t * ld + g] = c[0];
    to[(2 * t + 1) * ld + g] = c[1];
    to[2 * t * ld + g + 8] = c[2];
    to[(2 * t + 1) * ld + g + 8] = c[3];
}

/* Where a block is, and its results in shared memory, after the warps' rings. */
struct few_block {
    linear_place place;
    int units, splits, run_stride;
    float *sums, *delta;
};

template <int KIND>
static __device__ __forceinline__ few_block find_few(const linear_args &args, int block,
                                                     uint8_t *shared)
{
    few_block b;

    b.place = find_part(args, block);
    b.splits = args.op.parts[b.place.part].w.splits;
    b.units = few_units(b.splits, args.op.finish == GPU_SWIGLU, args.warps);
    find_units(args, b.place, block, b.units);
    b.run_stride = FEW_TOKENS * b.units * 16;
    b.sums = (float *)(shared + args.warps * few<KIND>::ring_bytes);
    b.delta = b.sums + b.splits * b.run_stride;
    return b;
}

/* The warps that multiply, each its share of the block's units x runs. While a warp multiplies
 * nothing is kept for later: registers are what is short. */
template <int KIND>
static __device__ __forceinline__ void multiply_few(const linear_args &args, int n_tokens,
                                                    uint8_t *shared)
{
    int warp = (int)threadIdx.x / WARP;

    for (int i = warp;; i += args.warps) {
        few_block b = find_few<KIND>(args, computed_anew((int)blockIdx.x), shared);
        int unit = i / b.splits, row_tile = unit_row_tile(args, b.place, b.units, unit);
        const gpu_matrix &w = args.op.parts[unit_part(args, b.place, b.units, unit)].w;
        float c[4] = {0, 0, 0, 0};

        if (unit >= b.units)
            break;
        if (row_tile >= row_tiles_of(w))
            continue;
        sum_run<KIND>(c, find_run<KIND>(args, w, row_tile, i % b.splits, n_tokens,
                                        shared + warp * few<KIND>::ring_bytes));
        b = find_few<KIND>(args, computed_anew((int)blockIdx.x), shared);
        put_results(b.sums + i % b.splits * b.run_stride + i / b.splits * 16, b.units * 16, c);
    }
}

/* One warp, for all units. */
static __device__ void adapters_few(const linear_args &args, const linear_place &place, int units,
                                    int n_tokens, lora_entry *table, float *delta)
{
    for (int unit = 0; unit < units; unit++) {
        int part = unit_part(args, place, units, unit);
        int row_tile = unit_row_tile(args, place, units, unit);
        float d[1][4];

        if (unit == 0 || part != unit_part(args, place, units, unit - 1))
            find_entries(args, args.op.parts[part].module, 0, n_tokens, 0, table, FEW_TOKENS);
        adapters_share<1>(d, args, part, row_tile, 0, n_tokens, table, table + FEW_TOKENS);
        put_results(delta + unit * 16, units * 16, d[0]);
    }
}

/* Registers for three blocks of the largest size a multiprocessor: 24 warps with 4 KiB each under
 * way are twice what 36 bytes a ns, that a multiprocessor of the fastest memory gets, ask for. */
template <int KIND>
static __global__ void __launch_bounds__((FEW_MAX_WARPS + 1) * WARP, GPU_RESIDENTS(3, 2))
    few_kernel(const __grid_constant__ linear_args args)
{
    GPU_SHARED(shared);
    int warp = (int)threadIdx.x / WARP;
    /* the step's counts are older than the kernel before, which waited for them */
    int n_tokens = min(real_rows(args), FEW_TOKENS);
    bool adapters = adapters_apply(args);
    few_block b;

    if (n_tokens > 0 && warp < args.warps)
        multiply_few<KIND>(args, n_tokens, shared);
    wait_for_previous();
    b = find_few<KIND>(args, computed_anew((int)blockIdx.x), shared);
    if (n_tokens > 0 && adapters && warp == args.warps)
        adapters_few(args, b.place, b.units, n_tokens, (lora_entry *)(b.delta + b.run_stride),
                     b.delta);
    __syncthreads();
    finish(args, b.place, b.units,
           {b.sums, b.units * 16, 0, b.run_stride, b.splits, adapters ? b.delta : NULL, true}, 0,
           n_tokens);
}

/* Half as many warps where that is all the work of the smallest block: finer blocks leave less of
 * the device idle at the end. */
static int few_warps(const gpu_linear &op)
{
    for (int i = 0; i < op.n_parts; i++)
        if (op.parts[i].w.splits * (op.finish == GPU_SWIGLU ? 2 : 1) > FEW_MAX_WARPS / 2)
            return FEW_MAX_WARPS;
    return FEW_MAX_WARPS / 2;
}

template <int KIND>
static cudaError_t launch_few(const linear_args *given, int n_rows, cudaStream_t stream)
{
    linear_args args = *given;
    bool swiglu = args.op.finish == GPU_SWIGLU;
    size_t sums = 0, rings;
    int blocks = 0;

    (void)n_rows;
    args.warps = few_warps(args.op);
    for (int i = 0; i < (swiglu ? 1 : args.op.n_parts); i++) {
        const gpu_matrix &w = args.op.parts[i].w;
        int units = few_units(w.splits, swiglu, args.warps), each = swiglu ? units / 2 : units;
        size_t bytes = (size_t)FEW_SUM_BYTES(units, w.splits + 1);

        args.first[i] = blocks;
        blocks += ((w.rows + 15) / 16 + each - 1) / each;
        sums = bytes > sums ? bytes : sums;
    }
    rings = (size_t)(args.warps * few<KIND>::ring_bytes);
    return gpu_launch_early(few_kernel<KIND>, dim3((unsigned)blocks),
                            dim3((unsigned)(args.warps + (args.op.layer >= 0)) * WARP),
                            rings + sums + FEW_TABLE_BYTES, stream, args);
}

#endif
