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
#define FEW_X_BYTES (FEW_TOKENS * 128)
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
    static const int stage_bytes = FEW_X_BYTES + (weight<KIND>::scaled ? SCALE_BYTES : 0);
    static const int ring_bytes = FEW_RING * stage_bytes;
    static const int depth = 8 / weight<KIND>::pieces;           /* 8 loads of 16 bytes under way */
    static const int turn = depth > FEW_RING ? depth : FEW_RING; /* stages of an iteration */
    static const int weight_bytes = weight<KIND>::pieces * PIECE_BYTES; /* of a stage */
};

/* What a lane reads of one run of a unit. Stages count from where the pointers are, which move
 * on once an iteration: all else is constants. */
struct few_run {
    const uint8_t *weights, *scales;
    const uint8_t *x;    /* 8 columns of token lane / 8 */
    int next;            /* from there to token lane / 8 + 4 */
    bool first, second;  /* whether there are these tokens */
    int n;               /* 64s of columns that are left */
    uint8_t *ring, *put; /* the warp's; where the lane puts its x of stage 0 */
    const uint8_t *take; /* the row of a matrix that it names there */
};

template <int KIND>
static __device__ __forceinline__ few_run find_run(const linear_args &args, const gpu_matrix &w,
                                                   int row_tile, int run, int n_tokens,
                                                   uint8_t *ring)
{
    int depth = depth_of(w), first = run * run_depth_of(w);
    int64_t at = (int64_t)row_tile * depth + first;
    int lane = (int)threadIdx.x % WARP, token = lane / 8, chunk = lane % 8;
    few_run r;

    r.weights = (const uint8_t *)w.data + at * few<KIND>::weight_bytes + lane * 16;
    r.scales = (const uint8_t *)w.scales + at * SCALE_BYTES + lane % 4 * 16;
    r.first = token < n_tokens;
    r.second = token + 4 < n_tokens;
    r.x = (const uint8_t *)(args.op.x + token * args.op.ldx + first * 64) + chunk * 16;
    r.next = (int)args.op.ldx * 8;
    r.n = max(0, min(run_depth_of(w), depth - first));
    r.ring = ring;
    r.put = ring + token * 128 + (chunk ^ token) * 16;
    r.take = ring + lane % 8 * 128 + (token ^ lane % 8) * 16;
    return r;
}

/* Stage `stage` of x and of the scales into place `slot` of the ring; a group of copies even if
 * there is none. */
template <int KIND>
static __device__ __forceinline__ void fetch_x(const few_run &run, int stage, int slot)
{
    int at = slot * few<KIND>::stage_bytes, lane = (int)threadIdx.x % WARP;

    if (stage < run.n) {
        if (run.first)
            copy_async16(run.put + at, run.x + stage * 128, true);
        if (run.second)
            copy_async16(run.ring + ((run.put - run.ring) ^ 64) + 512 + at,
                         run.x + run.next + stage * 128, true);
        if (weight<KIND>::scaled && lane < SCALE_BYTES / 16)
            copy_async16(run.ring + at + FEW_X_BYTES + lane * 16, run.scales + stage * SCALE_BYTES,
                         true);
    }
    copy_async_commit();
}

template <int KIND>
static __device__ __forceinline__ void fetch_weights(uint4 (&piece)[weight<KIND>::pieces],
                                                     const few_run &run, int stage)
{
    if (stage < run.n)
#pragma unroll
        for (int i = 0; i < weight<KIND>::pieces; i++)
            piece[i] = load_once(run.weights + stage * few<KIND>::weight_bytes + i * PIECE_BYTES);
}

/* c += 64 columns. */
template <int KIND>
static __device__ __forceinline__ void multiply_stage(float (&c)[4],
                                                      const uint4 (&piece)[weight<KIND>::pieces],
                                                      const few_run &run, int slot)
{
    int at = slot * few<KIND>::stage_bytes;
    const uint16_t *scales = (const uint16_t *)(run.ring + at + FEW_X_BYTES);

#pragma unroll
    for (int half = 0; half < 2; half++) {
        weight_scales s = {0, 0};
        uint32_t x[4];

        if (weight<KIND>::scaled)
            s = load_scales<KIND>(scales + half * 16);
        load_matrix4(x, run.ring + ((run.take - run.ring) ^ (half * 64)) + at);
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
        fetch_weights<KIND>(piece[i], run, i);
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
            fetch_weights<KIND>(piece[i % depth], run, i + depth);
        }
        run.weights += turn * few<KIND>::weight_bytes;
        run.scales += turn * SCALE_BYTES;
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

/* The warps that multiply, each its share of the block's units x runs. */
template <int KIND>
static __device__ __forceinline__ void multiply_few(const linear_args &args,
                                                    const linear_place &place, int units,
                                                    int n_tokens, uint8_t *ring, float *sums)
{
    int splits = args.op.parts[place.part].w.splits, warp = (int)threadIdx.x / WARP;

    for (int i = warp; i < units * splits; i += args.warps) {
        int unit = i / splits, run = i % splits;
        const gpu_matrix &w = args.op.parts[unit_part(args, place, units, unit)].w;
        int row_tile = unit_row_tile(args, place, units, unit);
        float c[4] = {0, 0, 0, 0};

        if (row_tile >= row_tiles_of(w))
            continue;
        sum_run<KIND>(c, find_run<KIND>(args, w, row_tile, run, n_tokens, ring));
        put_results(sums + run * FEW_TOKENS * units * 16 + unit * 16, units * 16, c);
    }
}

/* One warp, for all units. */
static __device__ void adapters_few(const linear_args &args, const linear_place &place, int units,
                                    int n_tokens, lora_entry *table, float *delta)
{
    int last = -1;

    for (int unit = 0; unit < units; unit++) {
        int part = unit_part(args, place, units, unit);
        int row_tile = unit_row_tile(args, place, units, unit);
        float d[1][4];

        if (part != last)
            find_entries(args, args.op.parts[part].module, 0, n_tokens, 0, table, FEW_TOKENS);
        last = part;
        adapters_share<1>(d, args, part, row_tile, 0, n_tokens, table, table + FEW_TOKENS);
        put_results(delta + unit * 16, units * 16, d[0]);
    }
}

/* Registers for three blocks of the largest size a multiprocessor. */
template <int KIND>
static __global__ void __launch_bounds__((FEW_MAX_WARPS + 1) * WARP, 3)
    few_kernel(const __grid_constant__ linear_args args)
{
    GPU_SHARED(shared);
    int warp = (int)threadIdx.x / WARP;
    linear_place place = find_part(args, (int)blockIdx.x);
    int splits = args.op.parts[place.part].w.splits;
    int units = few_units(splits, args.op.finish == GPU_SWIGLU, args.warps);
    int run_stride = FEW_TOKENS * units * 16;
    /* the step's counts are older than the kernel before, which waited for them */
    int n_tokens = min(real_rows(args), FEW_TOKENS);
    bool adapters = adapters_apply(args);
    float *sums = (float *)(shared + args.warps * few<KIND>::ring_bytes);
    float *delta = sums + splits * run_stride;

    find_units(args, place, (int)blockIdx.x, units);
    if (n_tokens > 0 && warp < args.warps)
        multiply_few<KIND>(args, place, units, n_tokens, shared + warp * few<KIND>::ring_bytes,
                           sums);
    wait_for_previous();
    if (n_tokens > 0 && adapters && warp == args.warps)
        adapters_few(args, place, units, n_tokens, (lora_entry *)(delta + run_stride), delta);
    __syncthreads();
    finish(args, place, units,
           {sums, units * 16, 0, run_stride, splits, adapters ? delta : NULL, true}, 0, n_tokens);
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
    return (
        args.early
            ? gpu_launch_early<linear_args>
            : gpu_launch<linear_args>)(few_kernel<KIND>, dim3((unsigned)blocks),
                                       dim3((unsigned)(args.warps + (args.op.layer >= 0)) * WARP),
                                       rings + sums + FEW_TABLE_BYTES, stream, args);
}

#endif
