/*
 * linear_tile.cuh: the product for more rows: blocks of 128 features x TOKENS tokens.
 *
 * runs_kernel: a block sums one run of the columns, its results go to memory, and the block
 * that comes last there adds them up; one more block sees to the adapters. For decoding, and
 * where there are too few blocks otherwise.
 * walk_kernel: a block sums all runs, one after the other. For prefill.
 */
#ifndef OL_LINEAR_TILE_CUH
#define OL_LINEAR_TILE_CUH

#include "kernels/linear_lora.cuh"
#include "kernels/linear_ring.cuh"

/* -- results -------------------------------------------------------------------------------- */

/* Calls what(c, index) for each of a lane's results: index in a run of linear_sums. */
template <int KIND, int TOKENS, typename F>
static __device__ __forceinline__ void each_result(tile_sums<KIND, TOKENS> &sums, int mask, F what)
{
    typedef shape<KIND, TOKENS> S;
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int warp = (int)threadIdx.x / WARP, across = warp % S::warps_across;
    int unit = warp / S::warps_across * S::tiles;
    int token = across * S::groups * 8 + 2 * t, feature = unit * 16 + g;

    /* sum_index(), with what is alike for all tokens of a lane, and for every second unit, out of
     * the way: few addresses to keep */
#pragma unroll
    for (int i = 0; i < S::tiles; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int at = sum_index(token, feature + i % 2 * 16 + e / 2 * 8, TILE_FEATURES, mask);

#pragma unroll
            for (int j = 0; j < S::groups; j++)
                what(sums.c[i][j][e], at + (j * 8 + e % 2) * TILE_FEATURES + i / 2 * 32);
        }
}

/* The adapters' share of the warp's results: what(c, index, part, feature in it) for each. `tables`
 * is room in shared memory. */
template <int KIND, int TOKENS, typename F>
static __device__ void each_share(const linear_args &args, const linear_place &place, int first_row,
                                  int end_row, int mask, uint8_t *tables, F what)
{
    typedef shape<KIND, TOKENS> S;
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int warp = (int)threadIdx.x / WARP, first = warp % S::warps_across * S::groups * 8;
    int unit = warp / S::warps_across * S::tiles;
    int part = unit_part(args, place, TILE_UNITS, unit);
    int row_tile = unit_row_tile(args, place, TILE_UNITS, unit);
    lora_entry *table = (lora_entry *)tables + warp * (S::groups + 1) * 8;

    find_entries(args, args.op.parts[part].module, first_row + first, end_row, 0, table,
                 S::groups * 8);
    for (int j = 0; j < S::groups; j++) {
        float d[S::tiles][4];

        adapters_share<S::tiles>(d, args, part, row_tile, first_row + first + j * 8, end_row,
                                 table + j * 8, table + S::groups * 8);
#pragma unroll
        for (int i = 0; i < S::tiles; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                what(d[i][e],
                     sum_index(first + j * 8 + 2 * t + e % 2, (unit + i) * 16 + g + e / 2 * 8,
                               TILE_FEATURES, mask),
                     part, (row_tile + i) * 16 + g + e / 2 * 8);
    }
}

/* -- a block a run ------------------------------------------------------------------------- */

/* Whether all `n` blocks of a tile have been here; the ticket is then zero again. What they wrote
 * before can be read. */
static __device__ __forceinline__ bool comes_last(int32_t *ticket, int n, int *shared)
{
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        *shared = atomicAdd(ticket, 1) == n - 1;
    __syncthreads();
    if (!*shared)
        return false;
    if (threadIdx.x == 0)
        *ticket = 0;
    __threadfence();
    return true;
}

template <int KIND, int TOKENS>
static __device__ __forceinline__ void
sum_one_run(const linear_args &args, const linear_place &place, int run, int first_row,
            int n_tokens, uint8_t *ring, float *to, int mask)
{
    typedef shape<KIND, TOKENS> S;
    const gpu_matrix &w = args.op.parts[place.part].w;
    int depth = run_depth_of(w), first = min(run * depth, depth_of(w));
    int end = min(first + depth, depth_of(w));
    pipeline<KIND, TOKENS, false> pipe;
    tile_sums<KIND, TOKENS> sums;

    pipe.source = find_source<KIND, TOKENS>(args, place, first_row, n_tokens);
    pipe.ring = ring;
    clear(sums);
    pipe.start(first * (64 / S::cols), end * (64 / S::cols));
    pipe.sum_until(sums, pipe.end);
    each_result(sums, mask, [&](float &c, int i) { to[i] = c; });
}

/* Where a block is, and its tile's results: in memory. */
struct runs_block {
    linear_place place;
    int slot, splits; /* slot: of memory and tickets */
    float *results, *delta;
};

template <int KIND, int TOKENS>
static __device__ __forceinline__ runs_block find_runs(const linear_args &args, int tile)
{
    const int floats = shape<KIND, TOKENS>::sum_floats;
    runs_block b;

    b.place = find_part(args, tile);
    find_units(args, b.place, tile, TILE_UNITS);
    b.splits = args.op.parts[b.place.part].w.splits;
    b.slot = tile + (int)blockIdx.z * args.n_tiles;
    b.results = args.op.partial + (int64_t)b.slot * (args.max_splits + 1) * floats;
    b.delta = b.results + (int64_t)args.max_splits * floats;
    return b;
}

/* Grid: tiles of features x (adapters, if they may apply, and runs) x tiles of tokens. */
template <int KIND, int TOKENS>
static __global__ void __launch_bounds__(TILE_THREADS,
                                         TOKENS <= 64 ? GPU_RESIDENTS(3, 2) : GPU_RESIDENTS(2, 1))
    runs_kernel(const __grid_constant__ linear_args args)
{
    typedef shape<KIND, TOKENS> S;
    GPU_SHARED(shared);
    int first_row = (int)blockIdx.z * TOKENS, run = (int)blockIdx.y - (args.op.layer >= 0);
    int n_tokens = min(real_rows(args) - first_row, TOKENS);
    bool adapters = adapters_apply(args);
    runs_block b = find_runs<KIND, TOKENS>(args, (int)blockIdx.x);
    bool alone = b.splits == 1 && !adapters; /* then results stay in shared memory */

    /* the step's counts are older than the kernel before, which waited for them */
    if (n_tokens <= 0 || run >= b.splits || (run < 0 && !adapters)) {
        wait_for_previous();
        return;
    }
    if (run < 0)
        wait_for_previous();
    if (run < 0)
        each_share<KIND, TOKENS>(args, b.place, first_row, first_row + n_tokens, 0, shared,
                                 [&](float d, int i, int, int) { b.delta[i] = d; });
    else
        sum_one_run<KIND, TOKENS>(args, b.place, run, first_row, n_tokens, shared,
                                  alone ? (float *)shared
                                        : b.results + (int64_t)run * S::sum_floats,
                                  alone ? TILE_MASK : 0);
    b = find_runs<KIND, TOKENS>(args, computed_anew((int)blockIdx.x));
    if (alone)
        __syncthreads();
    else if (!comes_last(args.op.tickets + b.slot, b.splits + adapters, (int *)shared))
        return;
    finish(args, b.place, TILE_UNITS,
           {alone ? (float *)shared : b.results, TILE_FEATURES, alone ? TILE_MASK : 0,
            S::sum_floats, b.splits, adapters ? b.delta : NULL, true},
           first_row, n_tokens);
}

template <int KIND, int TOKENS>
static cudaError_t launch_runs(const linear_args *args, int n_rows, cudaStream_t stream)
{
    dim3 grid((unsigned)args->n_tiles, (unsigned)(args->max_splits + (args->op.layer >= 0)),
              (unsigned)((n_rows + TOKENS - 1) / TOKENS));

    return gpu_launch_early(runs_kernel<KIND, TOKENS>, grid, dim3(TILE_THREADS),
                            (size_t)shape<KIND, TOKENS>::shared, stream, *args);
}

/* -- a block all runs ----------------------------------------------------------------------- */

/* Sums all runs; the totals are in `results` then. */
template <int KIND, int TOKENS>
static __device__ __forceinline__ void sum_all_runs(const linear_args &args,
                                                    const linear_place &place, int first_row,
                                                    int n_tokens, uint8_t *ring, float *results)
{
    typedef shape<KIND, TOKENS> S;
    const gpu_matrix &w = args.op.parts[place.part].w;
    const int scale = 64 / S::cols;
    pipeline<KIND, TOKENS, true> pipe;
    tile_sums<KIND, TOKENS> sums, totals;

    pipe.source = find_source<KIND, TOKENS>(args, place, first_row, n_tokens);
    pipe.ring = ring;
    pipe.start(0, depth_of(w) * scale);
    for (int run = 0; run < w.splits; run++) {
        clear(sums);
        pipe.sum_until(sums, min((run + 1) * run_depth_of(w), depth_of(w)) * scale);
        if (S::shared_totals)
            each_result(sums, TILE_MASK,
                        [&](float &c, int i) { results[i] = run ? results[i] + c : c; });
        else if (run == 0)
            totals = sums;
        else
            add_sums(totals, sums);
    }
    if (!S::shared_totals)
        each_result(totals, TILE_MASK, [&](float &c, int i) { results[i] = c; });
}

/* Grid: tiles of tokens x tiles of features. */
template <int KIND, int TOKENS>
static __global__ void __launch_bounds__(TILE_THREADS, 1)
    walk_kernel(const __grid_constant__ linear_args args)
{
    typedef shape<KIND, TOKENS> S;
    GPU_SHARED(shared);
    int first_row = (int)blockIdx.x * TOKENS, tile = (int)blockIdx.y;
    int n_tokens = min(real_rows(args) - first_row, TOKENS);
    linear_place place = find_part(args, tile);
    float *results = (float *)(shared + (S::shared_totals ? S::stages * S::bytes : 0));
    uint8_t *tables = shared + (S::shared_totals ? 0 : S::sum_floats * (int)sizeof(float));
    bool adapters = adapters_apply(args);

    if (n_tokens <= 0)
        return;
    find_units(args, place, tile, TILE_UNITS);
    sum_all_runs<KIND, TOKENS>(args, place, first_row, n_tokens, shared, results);
    if (adapters)
        each_share<KIND, TOKENS>(args, place, first_row, first_row + n_tokens, TILE_MASK, tables,
                                 [&](float d, int i, int part, int feature) {
                                     const gpu_linear_part &p = args.op.parts[part];

                                     if (feature < p.w.rows)
                                         results[i] = scaled_sum(p, results[i], feature) + d;
                                 });
    __syncthreads();
    finish(args, place, TILE_UNITS, {results, TILE_FEATURES, TILE_MASK, 0, 1, NULL, !adapters},
           first_row, n_tokens);
}

template <int KIND, int TOKENS>
static cudaError_t launch_walk(const linear_args *args, int n_rows, cudaStream_t stream)
{
    return gpu_launch(walk_kernel<KIND, TOKENS>,
                      dim3((unsigned)((n_rows + TOKENS - 1) / TOKENS), (unsigned)args->n_tiles),
                      dim3(TILE_THREADS), (size_t)shape<KIND, TOKENS>::shared, stream, *args);
}

#endif
