/*
 * shrink.cu: h = A x of all adapters of a step, and their energies. See launch.h.
 *
 * A block has an item and a run of GPU_SHRINK_SPLIT columns. Each of its warps has an eighth of
 * the run's columns: it keeps those of x of the item's members in shared memory, where nobody
 * else needs them, and streams its part of the matrices of all modules, 16 ranks at a time, from
 * memory to registers: they are stored as the product wants them. While 16 ranks are multiplied
 * the next 16 are on their way, 4 KiB a warp. A member is a column of the product. After each 16
 * ranks the warps' sums are added up and go to `partial`.
 *
 * The block of an item that comes last adds up the runs, scales and rounds, a warp to a member:
 * a launch of its own for that would cost a decode step more than the work.
 */
#include "kernels/gpu.cuh"
#include "kernels/launch.h"
#include "kernels/lora8.cuh"

#define SHRINK_WARPS 8
#define WARP_COLS (GPU_SHRINK_SPLIT / SHRINK_WARPS)
#define WARP_TILES (WARP_COLS / 16)
#define COL_TILES (GPU_ITEM_MEMBERS / 8) /* of a product: 8 members each */
#define SLAB_ROW (WARP_COLS * 2)         /* bytes */
#define SUM_TILE (16 * 8)                /* floats */

/* Shared memory for items of up to `capacity` tiles of members: x, then sums, twice. */
static __host__ __device__ size_t slab_bytes(int capacity)
{
    return (size_t)capacity * 8 * SLAB_ROW;
}

static __host__ __device__ size_t sum_bytes(int capacity)
{
    return (size_t)capacity * SUM_TILE * sizeof(float);
}

/* -- the matrices of a layer, 16 ranks after another ------------------------------------------ */

struct rank_cursor {
    const gpu_lora_part *part, *end;
    int tile; /* of the part */
};

/* Past parts that have no such tile; false at the end. */
static __device__ bool settle(rank_cursor &at)
{
    while (at.part < at.end && at.tile * 16 >= at.part->rank) {
        at.part++;
        at.tile = 0;
    }
    return at.part < at.end;
}

static __device__ rank_cursor first_ranks(const gpu_lora *lora, const gpu_shrink &op)
{
    const gpu_lora_part *parts = lora->parts + op.layer * GPU_MODULES;

    if (lora->n_layers <= op.layer)
        return {parts, parts, 0};
    return {parts + op.first_module, parts + op.last_module + 1, 0};
}

/* The warp's columns of 16 ranks, as they are stored: a piece is a tile, or two of eight bits. */
template <bool EIGHT> struct stored_ranks {
    static const int tiles = EIGHT ? 2 : 1; /* of a piece */
    static const int pieces = WARP_TILES / tiles;
    uint4 piece[pieces];
};

/* `tiles` of them from number `first` of `all`: multiples of 4. EARLY: before wait_for_previous().
 */
template <bool EIGHT, bool EARLY>
static __device__ void fetch_ranks(const rank_cursor &at, int all, int first, int tiles,
                                   stored_ranks<EIGHT> &to)
{
    typedef stored_ranks<EIGHT> S;
    const uint8_t *from = (const uint8_t *)at.part->a +
                          ((size_t)at.tile * (size_t)all + (size_t)first) / S::tiles * 512 +
                          threadIdx.x % WARP * 16;

#pragma unroll
    for (int k = 0; k < S::pieces; k++)
        if (k * S::tiles < tiles)
            to.piece[k] = EARLY ? load_once_early(from + k * 512) : load_once(from + k * 512);
}

/* Tile k of them. */
template <bool EIGHT>
static __device__ __forceinline__ void rank_tile(uint32_t (&a)[4],
                                                 const stored_ranks<EIGHT> &stored, int k)
{
    const uint4 &v = stored.piece[k / stored_ranks<EIGHT>::tiles];

    if (EIGHT)
        lora8_tile(a, k % 2 ? v.z : v.x, k % 2 ? v.w : v.y);
    else
        a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
}

/* -- x --------------------------------------------------------------------------------------- */

/* Where 8 columns of a member are. Those of 8 neighbouring members are in different banks. */
static __device__ uint8_t *slab_at(uint8_t *slab, int member, int eight)
{
    return slab + member * SLAB_ROW + (eight ^ (member & 7)) * 16;
}

/* The warp's `n_cols` columns, from `first` on, of the item's members, whose rows its lanes have;
 * beyond them zeros up to a tile. Copies are on their way when it returns. */
static __device__ void fetch_x(const gpu_shrink &op, gpu_item item, int row, int first, int n_cols,
                               uint8_t *slab)
{
    int lane = (int)threadIdx.x % WARP, eights = n_cols / 8, n = (item.n + 7) / 8 * 8;

    /* a row's 16 bytes by neighbouring lanes, two rows at once */
    for (int m = lane / 16; m < n; m += 2) {
        int from = __shfl_sync(FULL_MASK, row, m), eight = lane % 16;

        if (eight < eights)
            copy_async16(slab_at(slab, m, eight), op.x + from * op.ldx + first + eight * 8,
                         m < item.n);
    }
    copy_async_commit();
}

/* -- products ---------------------------------------------------------------------------------- */

/* c[i] = of the members 8 i .. 8 i + 7 the 16 ranks' sums over the warp's columns. */
template <bool EIGHT>
static __device__ void multiply(const stored_ranks<EIGHT> &ranks, uint8_t *slab, int tiles,
                                int col_tiles, float (&c)[COL_TILES][4])
{
    int lane = (int)threadIdx.x % WARP;

#pragma unroll
    for (int k = 0; k < WARP_TILES; k += 2) {
        uint32_t a[2][4];

        if (k >= tiles)
            break;
        rank_tile<EIGHT>(a[0], ranks, k);
        rank_tile<EIGHT>(a[1], ranks, k + 1);
#pragma unroll
        for (int i = 0; i < COL_TILES; i++) {
            uint32_t b[4], low[2], high[2];

            if (i >= col_tiles)
                break;
            load_matrix4(b, slab_at(slab, i * 8 + lane % 8, k * 2 + lane / 8));
            low[0] = b[0];
            low[1] = b[1];
            high[0] = b[2];
            high[1] = b[3];
            mma_bf16(c[i], a[0], low);
            mma_bf16(c[i], a[1], high);
        }
    }
}

/* The warp's sums, [member tile][rank][member]. */
static __device__ void put_sums(const float (&c)[COL_TILES][4], int col_tiles, float *sums)
{
    int lane = (int)threadIdx.x % WARP;

#pragma unroll
    for (int i = 0; i < COL_TILES; i++) {
        float2 *at = (float2 *)(sums + i * SUM_TILE) + lane;

        if (i >= col_tiles)
            break;
        at[0] = make_float2(c[i][0], c[i][1]);
        at[WARP] = make_float2(c[i][2], c[i][3]);
    }
}

/* Adds up what the warps have, in their order. */
static __device__ void add_sums(const gpu_rows &rows, gpu_item item, const rank_cursor &at,
                                const float *sums, int stride, int warps)
{
    int64_t to = (int64_t)blockIdx.y * rows.h_size + at.part->h + at.tile * 16;

    for (int i = (int)threadIdx.x; i < (item.n + 7) / 8 * SUM_TILE; i += SHRINK_WARPS * WARP) {
        int member = i / SUM_TILE * 8 + i % 8, rank = i % SUM_TILE / 8;
        float sum = sums[i];

        if (member >= item.n)
            continue;
        for (int w = 1; w < warps; w++)
            sum += sums[w * stride + i];
        rows.partial[to + rows.members[item.first + member].h + rank] = sum;
    }
}

/* -- h and energies -------------------------------------------------------------------------------
 * By the block of an item that comes last, when all runs are summed. */

/* Element i of a member's h, and its f32 value back to where the first run's sum was. */
static __device__ void finish_element(const gpu_rows &rows, int runs, float factor, bool real,
                                      int64_t i)
{
    float sum = rows.partial[i];

#pragma unroll 4
    for (int run = 1; run < runs; run++)
        sum += rows.partial[run * rows.h_size + i];
    sum = real ? sum * factor : 0;
    rows.partial[i] = sum;
    rows.h[i] = (uint16_t)bf16_pack(sum, 0);
}

/* The lane's share of h' gram h. */
static __device__ double energy_of(const gpu_lora_part *part, const float *h)
{
    double energy = 0;

    for (int i = (int)threadIdx.x % WARP; i < part->rank; i += WARP) {
        double dot = 0;

        for (int j = 0; j < part->rank; j++) /* gram is symmetric: lanes read neighbours */
            dot += (double)part->gram[(int64_t)j * part->rank + i] * (double)h[j];
        energy += dot * (double)h[i];
    }
    return energy;
}

static __device__ double warp_sum_double(double x)
{
    for (int step = WARP / 2; step > 0; step /= 2)
        x += __shfl_xor_sync(FULL_MASK, x, step);
    return x;
}

static __device__ void finish_member(const gpu_rows &rows, const gpu_shrink &op,
                                     const gpu_member &member)
{
    int lane = (int)threadIdx.x % WARP;
    double energy = 0;

    for (rank_cursor at = first_ranks(member.lora, op); at.part < at.end; at.part++) {
        const gpu_lora_part *part = at.part;
        int64_t h = (int64_t)member.h + part->h;

        for (int i = lane; i < (part->rank + 15) / 16 * 16; i += WARP) {
            float factor = member.weight * part->scale;

            if (rows.lora8 && i < part->rank)
                factor *= part->scales[i];
            finish_element(rows, (int)gridDim.y, factor, i < part->rank, h + i);
        }
        __syncwarp();
        if (member.energy >= 0)
            energy += energy_of(part, rows.partial + h);
    }
    energy = warp_sum_double(energy);
    if (lane == 0 && member.energy >= 0 && energy > 0) /* rounding may make of 0 less than 0 */
        rows.energy[member.energy] += energy;
}

/* The item's members, if all its other blocks are done. *last: in shared memory. */
static __device__ void finish_item(const gpu_rows &rows, const gpu_shrink &op, gpu_item item,
                                   volatile int *last)
{
    __threadfence(); /* what this block has summed is there before its ticket */
    __syncthreads();
    if (threadIdx.x == 0)
        *last = atomicAdd(&op.tickets[blockIdx.x], 1) == (int)gridDim.y - 1;
    __syncthreads();
    if (!*last)
        return;
    __threadfence();
    if (threadIdx.x == 0)
        op.tickets[blockIdx.x] = 0;
    for (int m = (int)threadIdx.x / WARP; m < item.n; m += SHRINK_WARPS)
        finish_member(rows, op, rows.members[item.first + m]);
}

/* -- the kernel ------------------------------------------------------------------------------ */

template <bool EIGHT>
static __global__ void __launch_bounds__(SHRINK_WARPS *WARP, 2)
    shrink_kernel(gpu_rows rows, gpu_shrink op, int first_item, int capacity)
{
    GPU_SHARED(shared);
    int warp = (int)threadIdx.x / WARP, all = (int)((op.cols + 63) / 64 * 4);
    int first = ((int)blockIdx.y * SHRINK_WARPS + warp) * WARP_TILES;
    int tiles = max(0, min(WARP_TILES, all - first)), turn = 0;
    int left = all - (int)blockIdx.y * SHRINK_WARPS * WARP_TILES;
    int warps = min(SHRINK_WARPS, (left + WARP_TILES - 1) / WARP_TILES);
    int stride = (int)(sum_bytes(capacity) / sizeof(float));
    uint8_t *slab = shared + (size_t)warp * slab_bytes(capacity);
    float *sums = (float *)(shared + SHRINK_WARPS * slab_bytes(capacity));
    stored_ranks<EIGHT> ranks, next;
    gpu_item item = {0, 0};
    rank_cursor at, then = {NULL, NULL, 0};
    bool more = first_item + (int)blockIdx.x < rows.counts->n_items;
    int row = 0;

    /* the step's lists and its adapters are older than the kernel before */
    if (more) {
        item = rows.items[first_item + (int)blockIdx.x];
        row = rows.members[item.first + min((int)threadIdx.x % WARP, item.n - 1)].row;
        then = first_ranks(rows.members[item.first].lora, op);
        more = settle(then);
    }
    if (more)
        fetch_ranks<EIGHT, true>(then, all, first, tiles, next);
    wait_for_previous();
    if (!more)
        return;
    fetch_x(op, item, row, first * 16, tiles * 16, slab);
    copy_async_wait<0>();
    __syncwarp();
    do {
        float c[COL_TILES][4] = {};

        ranks = next;
        at = then;
        then.tile++;
        more = settle(then);
        if (more)
            fetch_ranks<EIGHT, false>(then, all, first, tiles, next);
        multiply<EIGHT>(ranks, slab, tiles, (item.n + 7) / 8, c);
        put_sums(c, (item.n + 7) / 8, sums + (turn * SHRINK_WARPS + warp) * stride);
        __syncthreads(); /* of two turns: who writes one has seen all read it */
        add_sums(rows, item, at, sums + turn * SHRINK_WARPS * stride, stride, warps);
        turn ^= 1;
    } while (more);
    finish_item(rows, op, item, (int *)sums);
}

extern "C" cudaError_t gpu_shrink_run(const gpu_rows *rows, const gpu_shrink *op, int n_items,
                                      int n_members, cudaStream_t stream)
{
    int most = n_members < GPU_ITEM_MEMBERS ? n_members : GPU_ITEM_MEMBERS;
    int capacity = (most + 7) / 8, runs = (int)((op->cols - 1) / GPU_SHRINK_SPLIT) + 1;
    size_t shared = SHRINK_WARPS * (slab_bytes(capacity) + 2 * sum_bytes(capacity));
    void (*kernel)(gpu_rows, gpu_shrink, int, int) =
        rows->lora8 ? shrink_kernel<true> : shrink_kernel<false>;
    cudaError_t code = cudaSuccess;

    for (int first = 0; first < n_items && code == cudaSuccess; first += GPU_TICKETS) {
        int n = n_items - first < GPU_TICKETS ? n_items - first : GPU_TICKETS;

        code =
            gpu_launch_early(kernel, dim3((unsigned)n, (unsigned)runs), dim3(SHRINK_WARPS * WARP),
                             shared, stream, *rows, *op, first, capacity);
    }
    return code;
}
