/*
 * linear.cu: which kernel computes a product, and how matrices are cut. See linear.cuh, launch.h.
 */
#include "kernels/linear.cuh"

#define RUNS_ROWS 128  /* of a block that sums one run, at most */
#define GROUP_BLOCKS 3 /* of GPU_WAY_GROUP_128 and _256: few, so that each takes several tiles */

/* -- runs ----------------------------------------------------------------------------------- */

/* Warps of a decoding step, one a run and 16 rows, that keep a device of this decade busy:
 * 16 on each of 132 multiprocessors. */
#define WANTED_WARPS 2048

extern "C" int gpu_linear_splits(int rows, int cols)
{
    int depth = (cols + 63) / 64, tiles = (rows + 15) / 16;
    int least = depth >= 32 ? 8 : 4; /* 64s of a run: shorter ones cost more than they bring */
    int n = WANTED_WARPS / (tiles > 0 ? tiles : 1), run;

    n = n > LINEAR_MAX_SPLITS ? LINEAR_MAX_SPLITS : n;
    n = n > depth / least ? depth / least : n;
    n = n < 1 ? 1 : n;
    run = (depth + n - 1) / n;
    return run > 0 ? (depth + run - 1) / run : 1;
}

/* -- the device ------------------------------------------------------------------------------- */

struct device_limits {
    int multiprocessors, shared;
};

/* Asked for once: all that a process uses are alike. */
static cudaError_t limits_of_device(device_limits *out)
{
    static device_limits limits;
    device_limits found;
    int device;

    if (!limits.multiprocessors) {
        cudaError_t code = cudaGetDevice(&device);

        if (code == cudaSuccess)
            code = cudaDeviceGetAttribute(&found.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                          device);
        if (code == cudaSuccess)
            code = cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount,
                                          device);
        if (code != cudaSuccess)
            return code;
        limits = found;
    }
    *out = limits;
    return cudaSuccess;
}

/* Whether there is machine code for sm_90a: cuda.mk says so. What was compiled for sm_90 runs
 * there, too, and has none of it. */
#if defined(GPU_HAS_90A) || defined(OL_SIMT)
static const bool has_code = true;
#else
static const bool has_code = false;
#endif

extern "C" int gpu_linear_has_groups(int device)
{
    int major, shared;

    return has_code &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
               cudaSuccess &&
           major == 9 && shared >= GROUP_SHARED;
}

/* -- memory between blocks --------------------------------------------------------------------- */

static int max_splits(const gpu_linear *op, int first, int end)
{
    int n = 1;

    for (int i = first; i < end; i++)
        n = op->parts[i].w.splits > n ? op->parts[i].w.splits : n;
    return n;
}

/* Blocks of TILE_FEATURES that a part has: of SwiGLU's each has half of either part. */
static int feature_tiles(const gpu_linear *op, int part)
{
    int units = op->finish == GPU_SWIGLU ? TILE_UNITS / 2 : TILE_UNITS;

    return ((op->parts[part].w.rows + 15) / 16 + units - 1) / units;
}

static int all_feature_tiles(const gpu_linear *op, int first, int end)
{
    int n = 0;

    for (int i = first; i < (op->finish == GPU_SWIGLU ? first + 1 : end); i++)
        n += feature_tiles(op, i);
    return n;
}

/* Tiles of up to RUNS_ROWS rows that get a block for each run: one, or as many as would leave half
 * the device idle with a block for all runs. */
static int tiles_by_runs(const gpu_linear *op, int n_rows, const device_limits *limits)
{
    int n = (n_rows + RUNS_ROWS - 1) / RUNS_ROWS;
    int most = limits->multiprocessors / 2 / all_feature_tiles(op, 0, op->n_parts);

    most = most < 1 ? 1 : most;
    return n < most ? n : most;
}

extern "C" size_t gpu_linear_partial(const gpu_linear *op, int n_rows)
{
    int splits = max_splits(op, 0, op->n_parts), tiles = all_feature_tiles(op, 0, op->n_parts);
    int tokens = 16;
    device_limits limits;

    if (n_rows < 1 || tiles < 1 || limits_of_device(&limits) != cudaSuccess ||
        (splits == 1 && op->layer < 0))
        return 0;
    while (tokens < n_rows && tokens < RUNS_ROWS)
        tokens *= 2;
    return (size_t)tiles * (size_t)tiles_by_runs(op, n_rows, &limits) * (size_t)(splits + 1) *
           (size_t)tokens * TILE_FEATURES;
}

/* -- launching ------------------------------------------------------------------------------- */

static const linear_kernels *kernels_of(int kind)
{
    static const linear_kernels *const all[GPU_KINDS] = {&linear_bf16, &linear_int8, &linear_int4,
                                                         &linear_int4m, &linear_fp8};

    return all[kind];
}

/* 256 tokens a block read less, but not where that leaves multiprocessors, or much of the last
 * block, idle. */
static cudaError_t launch_walk_of(const linear_kernels *kernels, const linear_args *args,
                                  const device_limits *limits, int n_rows, cudaStream_t stream)
{
    int wide = (n_rows + 255) / 256, narrow = (n_rows + 127) / 128;

    if (limits->shared >= WALK_FAR_SHARED && wide * args->n_tiles >= limits->multiprocessors &&
        (narrow % 2 == 0 || narrow > 16))
        return kernels->walk_far(args, n_rows, stream);
    return kernels->walk(args, n_rows, stream);
}

/* Rounds of blocks until all are done, in quarters of the time that 128 tokens take: 256 take less
 * than twice that. */
static int64_t rounds(int tiles, int64_t n_tiles, const device_limits *limits, int quarters)
{
    return (tiles * n_tiles + limits->multiprocessors - 1) / limits->multiprocessors * quarters;
}

static cudaError_t launch_group_of(const linear_kernels *kernels, const linear_args *args,
                                   const device_limits *limits, int n_rows, cudaStream_t stream)
{
    int wide = (n_rows + 255) / 256, narrow = (n_rows + 127) / 128;
    bool far = args->op.way == GPU_WAY_GROUP ? rounds(wide, args->n_tiles, limits, 7) <=
                                                   rounds(narrow, args->n_tiles, limits, 4)
                                             : args->op.way == GPU_WAY_GROUP_256;

    return far ? kernels->group_far(args, n_rows, stream) : kernels->group(args, n_rows, stream);
}

/* Parts first .. end - 1, of one kind. */
static cudaError_t launch_parts(const gpu_rows *rows, const gpu_linear *op, int first, int end,
                                int column, int n_rows, cudaStream_t stream)
{
    const linear_kernels *kernels = kernels_of(op->parts[first].w.kind);
    linear_args args = {};
    device_limits limits;
    cudaError_t code = limits_of_device(&limits);

    if (code != cudaSuccess)
        return code;
    args.at_once = op->way > GPU_WAY_GROUP ? GROUP_BLOCKS : limits.multiprocessors;
    args.rows = *rows;
    args.op = *op;
    args.op.n_parts = end - first;
    args.column = column;
    for (int i = 0; i < end - first; i++)
        args.op.parts[i] = op->parts[first + i];
    for (int i = 1; i < end - first; i++)
        args.first[i] = args.first[i - 1] + feature_tiles(op, first + i - 1);
    args.n_tiles = all_feature_tiles(op, first, end);
    args.max_splits = max_splits(op, first, end);
    if (args.n_tiles > GPU_TICKETS)
        return cudaErrorInvalidValue;
    if (op->way > GPU_WAY_GROUP)
        return launch_group_of(kernels, &args, &limits, n_rows, stream);
    if (n_rows <= kernels->few_rows)
        return kernels->few(&args, n_rows, stream);
    if (n_rows <= tiles_by_runs(op, n_rows, &limits) * RUNS_ROWS)
        return kernels->runs(&args, n_rows, stream);
    if (op->way == GPU_WAY_GROUP)
        return launch_group_of(kernels, &args, &limits, n_rows, stream);
    return launch_walk_of(kernels, &args, &limits, n_rows, stream);
}

static bool makes_sense(const gpu_linear *op)
{
    const gpu_matrix *w = &op->parts[0].w;

    if (op->n_parts < 1 || op->n_parts > 3 || op->ldx % GPU_PAD)
        return false;
    for (int i = 0; i < op->n_parts; i++)
        if (op->parts[i].w.kind < GPU_BF16 || op->parts[i].w.kind >= GPU_KINDS ||
            op->parts[i].w.splits < 1 || op->parts[i].w.splits > LINEAR_MAX_SPLITS ||
            op->parts[i].w.rows < 1 || op->parts[i].w.cols != w->cols)
            return false;
    return op->finish != GPU_SWIGLU ||
           (op->n_parts == 2 && op->parts[1].w.kind == w->kind && op->parts[1].w.rows == w->rows);
}

extern "C" cudaError_t gpu_linear_run(const gpu_rows *rows, const gpu_linear *op, int n_rows,
                                      cudaStream_t stream)
{
    int column = 0;

    if (!makes_sense(op))
        return cudaErrorInvalidValue;
    if (n_rows <= 0)
        return cudaSuccess;
    for (int first = 0, end; first < op->n_parts; first = end) {
        cudaError_t code;

        for (end = first + 1; end < op->n_parts; end++)
            if (op->parts[end].w.kind != op->parts[first].w.kind)
                break;
        code = launch_parts(rows, op, first, end, column, n_rows, stream);
        if (code != cudaSuccess)
            return code;
        for (int i = first; i < end; i++)
            column += op->parts[i].w.rows;
    }
    return cudaSuccess;
}
