/* pack_lora.cu: adapters' matrices, one or many at a time, and in eight bits. See launch.h and
 * README.md, adapters. */
#include "kernels/lora8.cuh"
#include "kernels/packed.cuh"
#include "kernels/source.cuh"

/* -- the largest magnitude of each rank ------------------------------------------------------- */

#define MOST_COLS 1024 /* of A's row, a block */
#define MOST_ROWS 128  /* of B, a block */
#define MOST_WARPS 4

/* The larger of both; *bad if the number is not finite as bf16. */
static __device__ float larger(float most, float v, int32_t *bad)
{
    if (bad && !finite_pair(bf16_pack(v, 0)))
        *bad = 1; /* whoever writes it writes the same */
    return fmaxf(most, fabsf(v));
}

/* Magnitudes have the order of their bits, so any order of blocks comes to the same. */
static __device__ void note_most(uint32_t *to, float most)
{
    atomicMax(to, __float_as_uint(most));
}

/* A block has some columns of one of A's rows, a rank. */
static __device__ void most_of_row(uint32_t *most, const gpu_source &s, int row, int part,
                                   int32_t *bad)
{
    int first = part * MOST_COLS, end = min(first + MOST_COLS, s.cols);
    float mine = 0;

    for (int col = first + (int)threadIdx.x; col < end; col += MOST_WARPS * WARP)
        mine = larger(mine, source_value(s, row, col), bad);
    mine = warp_max(mine);
    if (threadIdx.x % WARP == 0)
        note_most(most + row, mine);
}

static __global__ void most_of_rows_kernel(uint32_t *most, gpu_source s, int32_t *bad)
{
    most_of_row(most, s, (int)blockIdx.x, (int)blockIdx.y, bad);
}

/* A block has some rows of 32 of B's columns, ranks. */
static __device__ void most_of_columns(uint32_t *most, const gpu_source &s, int columns, int part,
                                       int32_t *bad)
{
    int col = columns * WARP + (int)threadIdx.x % WARP;
    int first = part * MOST_ROWS, end = min(first + MOST_ROWS, s.rows);
    float mine = 0;

    if (col >= s.cols)
        return;
    for (int row = first + (int)threadIdx.x / WARP; row < end; row += MOST_WARPS)
        mine = larger(mine, source_value(s, row, col), bad);
    note_most(most + col, mine);
}

static __global__ void most_of_columns_kernel(uint32_t *most, gpu_source s, int32_t *bad)
{
    most_of_columns(most, s, (int)blockIdx.x, (int)blockIdx.y, bad);
}

extern "C" cudaError_t gpu_lora8_most(const gpu_lora8 *to, int first_row, const gpu_source *source,
                                      int32_t *bad, cudaStream_t stream)
{
    unsigned rows = (unsigned)source->rows, cols = (unsigned)source->cols;
    dim3 block(MOST_WARPS * WARP);

    if (to->by_columns)
        return gpu_launch(most_of_columns_kernel,
                          dim3((cols + WARP - 1) / WARP, (rows + MOST_ROWS - 1) / MOST_ROWS), block,
                          0, stream, to->most, *source, bad);
    return gpu_launch(most_of_rows_kernel, dim3(rows, (cols + MOST_COLS - 1) / MOST_COLS), block, 0,
                      stream, to->most + first_row, *source, bad);
}

/* -- packing ----------------------------------------------------------------------------------- */

/* Of -127 .. 127. A rank whose numbers are all zero, or below what 127 parts of a float can tell,
 * is zero. */
static __device__ uint32_t nearest8(float v, float most)
{
    float scale = most / GPU_LORA8_MOST;
    float q = scale > 0 ? rintf(v / scale) : 0;

    return (uint32_t)(int)fminf(fmaxf(q, -GPU_LORA8_MOST), GPU_LORA8_MOST) & 255;
}

/* A warp packs a tile of `strip`, of the source's it is that of `from`. */
static __device__ void pack_lora8_tile(const gpu_lora8 &to, int strip, const gpu_source &s,
                                       int from, int tile)
{
    int lane = (int)threadIdx.x % WARP;
    int64_t number = (int64_t)strip * to.col_tiles + tile;
    uint32_t words[2] = {0, 0};
    float v[8];

    load_tile(s, from, tile, v);
    for (int j = 0; j < 8; j++) {
        int rank = to.by_columns ? 16 * tile + 2 * (lane % 4) + j % 2 + 8 * (j / 4)
                                 : 16 * strip + lane / 4 + 8 * (j / 2 % 2);
        uint32_t q = nearest8(v[j], __uint_as_float(to.most[rank]));

        words[j / 4] |= q << (8 * (lora8_place(j) % 4));
    }
    *(uint2 *)(to.data + (to.by_columns ? (number * WARP + lane) * 8
                                        : (number / 2 * WARP + lane) * 16 + number % 2 * 8)) =
        make_uint2(words[0], words[1]);
}

static __global__ void pack_lora8_kernel(gpu_lora8 to, int first_strip, gpu_source s)
{
    int tile = (int)(blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP);
    int strip = (int)blockIdx.x;

    if (tile < to.col_tiles)
        pack_lora8_tile(to, first_strip + strip, s, strip, tile);
}

extern "C" cudaError_t gpu_lora8_pack(const gpu_lora8 *to, int first_row, const gpu_source *source,
                                      cudaStream_t stream)
{
    unsigned strips = (unsigned)(source->rows + 15) / 16, warps = 4;

    return gpu_launch(pack_lora8_kernel,
                      dim3(strips, ((unsigned)to->col_tiles + warps - 1) / warps),
                      dim3(warps * WARP), 0, stream, *to, first_row / 16, *source);
}

/* -- many matrices at a time ------------------------------------------------------------------ */

#define ARRIVAL_WARPS 4 /* of packing: a tile each */

static int ceil_div(int n, int by)
{
    return (n + by - 1) / by;
}

static int packing_blocks(const gpu_arrival &a)
{
    return ceil_div(ceil_div(a.source.rows, 16) * a.to.col_tiles, ARRIVAL_WARPS);
}

static int measuring_blocks(const gpu_arrival &a)
{
    if (!a.to.most)
        return 0;
    return a.to.by_columns ? ceil_div(a.source.cols, WARP) * ceil_div(a.source.rows, MOST_ROWS)
                           : a.source.rows * ceil_div(a.source.cols, MOST_COLS);
}

extern "C" void gpu_arrivals_count(gpu_arrival *table, int n, gpu_arrivals *all)
{
    all->n = n;
    all->blocks = all->blocks_most = 0;
    for (int i = 0; i < n; i++) {
        table[i].first = all->blocks;
        table[i].first_most = all->blocks_most;
        all->blocks += packing_blocks(table[i]);
        all->blocks_most += measuring_blocks(table[i]);
    }
}

/* Whose the block is: the last one that begins there or before. Each has one at least. */
template <bool MEASURING> static __device__ gpu_arrival arrival_of(const gpu_arrivals &all)
{
    int low = 0, high = all.n - 1;

    while (low < high) {
        int middle = (low + high + 1) / 2;
        const gpu_arrival *a = all.table + middle;

        if ((MEASURING ? a->first_most : a->first) <= (int)blockIdx.x)
            low = middle;
        else
            high = middle - 1;
    }
    return all.table[low];
}

static __global__ void measure_arrivals_kernel(gpu_arrivals all, int32_t *bad)
{
    gpu_arrival a = arrival_of<true>(all);
    int block = (int)blockIdx.x - a.first_most;

    if (a.to.by_columns) {
        int columns = (a.source.cols + WARP - 1) / WARP;

        most_of_columns(a.to.most, a.source, block % columns, block / columns, bad);
    } else {
        int parts = (a.source.cols + MOST_COLS - 1) / MOST_COLS;

        most_of_row(a.to.most, a.source, block / parts, block % parts, bad);
    }
}

template <bool EIGHT> static __global__ void pack_arrivals_kernel(gpu_arrivals all, int32_t *bad)
{
    gpu_arrival a = arrival_of<false>(all);
    int number =
        ((int)blockIdx.x - a.first) * ARRIVAL_WARPS + (int)threadIdx.x / WARP; /* of the tile */
    int strip = number / a.to.col_tiles, tile = number % a.to.col_tiles;

    if (16 * strip >= a.source.rows)
        return;
    if (EIGHT)
        pack_lora8_tile(a.to, strip, a.source, strip, tile);
    else
        pack_bf16_tile(a.to.data, number, a.source, strip, tile, bad);
}

extern "C" cudaError_t gpu_arrivals_pack(const gpu_arrivals *all, int32_t *bad, cudaStream_t stream)
{
    dim3 blocks((unsigned)all->blocks);
    cudaError_t code;

    if (!all->blocks_most)
        return gpu_launch(pack_arrivals_kernel<false>, blocks, dim3(ARRIVAL_WARPS * WARP), 0,
                          stream, *all, bad);
    code = gpu_launch(measure_arrivals_kernel, dim3((unsigned)all->blocks_most),
                      dim3(MOST_WARPS * WARP), 0, stream, *all, bad);
    if (code != cudaSuccess)
        return code;
    return gpu_launch(pack_arrivals_kernel<true>, blocks, dim3(ARRIVAL_WARPS * WARP), 0, stream,
                      *all, bad);
}

/* -- of a whole adapter ---------------------------------------------------------------------------
 * When the largest magnitudes of all its matrices are known. */

/* A block has a part. */
static __global__ void lora8_scales_kernel(const gpu_lora_part *parts)
{
    gpu_lora_part part = parts[blockIdx.x];
    uint32_t *most = (uint32_t *)part.scales;
    int padded = (part.rank + 15) / 16 * 16;

    for (int i = (int)threadIdx.x; i < part.rank; i += (int)blockDim.x) {
        float a = __uint_as_float(most[i]) / GPU_LORA8_MOST;
        float b = __uint_as_float(most[padded + i]) / GPU_LORA8_MOST;

        most[i] = __float_as_uint(a * b);
    }
}

extern "C" cudaError_t gpu_lora8_scales(const gpu_lora_part *parts, int n_parts,
                                        cudaStream_t stream)
{
    return gpu_launch(lora8_scales_kernel, dim3((unsigned)n_parts), dim3(WARP), 0, stream, parts);
}

/* -- before there are steps ------------------------------------------------------------------- */

extern "C" cudaError_t gpu_lora_load_kernels(void)
{
    const void *const kernels[] = {
        (const void *)most_of_rows_kernel,       (const void *)most_of_columns_kernel,
        (const void *)pack_lora8_kernel,         (const void *)lora8_scales_kernel,
        (const void *)measure_arrivals_kernel,   (const void *)pack_arrivals_kernel<false>,
        (const void *)pack_arrivals_kernel<true>};
    cudaFuncAttributes ignored;
    cudaError_t code = cudaSuccess;

    for (const void *kernel : kernels)
        if (code == cudaSuccess)
            code = cudaFuncGetAttributes(&ignored, kernel);
    return code;
}
