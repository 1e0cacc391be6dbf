/*
 * linear_lora.cuh: the adapters' share of a product, B h, by single warps.
 *
 * Eight tokens are the columns of one product. For each place in the rows' lists, each adapter
 * among them is a pass, in which the others' h is zero and their columns of the result are left
 * as they were: nothing of a row's adapter reaches another row, not even a NaN.
 */
#ifndef OL_LINEAR_LORA_CUH
#define OL_LINEAR_LORA_CUH

#include "kernels/linear.cuh"
#include "kernels/lora8.cuh"

/* What a token's list has at some place: b is NULL if nothing for this module. */
struct lora_entry {
    const void *b;
    int32_t h, k_tiles;
};

static __device__ __forceinline__ int member_row(const linear_args &args, int row)
{
    return args.op.logits ? args.rows.logit_rows[row] : row;
}

static __device__ lora_entry find_entry(const linear_args &args, int module, int row, int place)
{
    const gpu_rows &rows = args.rows;
    lora_entry none = {NULL, 0, 0};
    int at = rows.member_start[row] + place;
    const gpu_member *m;
    const gpu_lora_part *part;

    if (at >= rows.member_start[row + 1])
        return none;
    m = rows.members + rows.row_members[at];
    if (args.op.layer >= m->lora->n_layers)
        return none;
    part = m->lora->parts + args.op.layer * GPU_MODULES + module;
    if (part->rank <= 0)
        return none;
    return {part->b, m->h + part->h, (part->rank + 15) / 16};
}

/* The warp fills table[0 .. n - 1] for rows from `first` on; rows from `end` on have none. */
static __device__ void find_entries(const linear_args &args, int module, int first, int end,
                                    int place, lora_entry *table, int n)
{
    __syncwarp();
    for (int i = (int)threadIdx.x % WARP; i < n; i += WARP)
        table[i] = first + i < end ? find_entry(args, module, member_row(args, first + i), place)
                                   : lora_entry{NULL, 0, 0};
    __syncwarp();
}

/* How long the longest list of eight rows is; the same for all lanes. */
static __device__ int longest_list(const linear_args &args, int first, int end)
{
    int row = first + (int)threadIdx.x % 8, n = 0;

    if (row < end) {
        row = member_row(args, row);
        n = args.rows.member_start[row + 1] - args.rows.member_start[row];
    }
    for (int step = 4; step > 0; step /= 2)
        n = max(n, __shfl_xor_sync(FULL_MASK, n, step));
    return n;
}

/* A bit for each column that is the first one of its adapter. */
static __device__ __forceinline__ unsigned leaders_of(const lora_entry *table)
{
    int column = (int)threadIdx.x % WARP % 8;
    bool leads = table[column].b != NULL;

    for (int i = 0; i < column; i++)
        leads = leads && table[i].b != table[column].b;
    return __ballot_sync(FULL_MASK, leads) & 0xffu;
}

/* Bytes of a tile of B, and a lane's of them. */
static __device__ __forceinline__ int b_tile_bytes(const gpu_rows &rows)
{
    return rows.lora8 ? 256 : 512;
}

static __device__ __forceinline__ int b_lane_bytes(const gpu_rows &rows)
{
    return rows.lora8 ? 8 : 16;
}

/* A lane's, as they are stored. */
static __device__ __forceinline__ uint4 load_b(const gpu_rows &rows, const uint8_t *at)
{
    if (rows.lora8) {
        uint2 v = *(const uint2 *)at;

        return make_uint4(v.x, v.y, 0, 0);
    }
    return *(const uint4 *)at;
}

/* To a fragment. */
static __device__ __forceinline__ void b_tile(uint32_t (&a)[4], const gpu_rows &rows,
                                              const uint4 &stored)
{
    if (rows.lora8)
        lora8_tile(a, stored.x, stored.y);
    else
        a[0] = stored.x, a[1] = stored.y, a[2] = stored.z, a[3] = stored.w;
}

#define LORA_BATCH 4 /* products whose operands are loaded together */

struct lora_batch {
    const uint8_t *a[LORA_BATCH]; /* a tile of B, of the first feature tile */
    uint32_t h[LORA_BATCH][2];
    int stride[LORA_BATCH];   /* bytes to the next feature tile's */
    unsigned own[LORA_BATCH]; /* bit 4 * i: column i is the adapter's */
};

/* Takes the next products, of the leaders that are left, from tile k on. Where none is left, one
 * for no column. */
static __device__ __forceinline__ void fill_batch(lora_batch &batch, const lora_entry *table,
                                                  const gpu_rows &rows, int row_tile,
                                                  unsigned &leaders, int &k)
{
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    lora_entry e = {NULL, 0, 0}, mine = table[g];

#pragma unroll
    for (int i = 0; i < LORA_BATCH; i++) {
        bool any = leaders != 0;

        if (any)
            e = table[__ffs((int)leaders) - 1];
        batch.stride[i] = e.k_tiles * b_tile_bytes(rows);
        batch.a[i] = (const uint8_t *)e.b + (int64_t)row_tile * batch.stride[i] +
                     k * b_tile_bytes(rows) + lane * b_lane_bytes(rows);
        batch.own[i] = __ballot_sync(FULL_MASK, any && mine.b == e.b);
        batch.h[i][0] = batch.h[i][1] = 0;
        if (any && mine.b == e.b) {
            const uint16_t *from = rows.h + mine.h + k * 16 + 2 * t;

            batch.h[i][0] = *(const uint32_t *)from;
            batch.h[i][1] = *(const uint32_t *)(from + 8);
        }
        if (++k >= e.k_tiles) {
            leaders &= leaders - 1;
            k = 0;
        }
    }
}

/* d[i] += B h of the table's entries, feature tiles row_tile + i below row_tiles. */
template <int TILES>
static __device__ void add_entries(float (&d)[TILES][4], const lora_entry *table,
                                   const gpu_rows &rows, int row_tile, int row_tiles)
{
    unsigned leaders = leaders_of(table);
    int k = 0, t = (int)threadIdx.x % 4;

    while (leaders) {
        lora_batch batch;

        fill_batch(batch, table, rows, row_tile, leaders, k);
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            uint4 a[LORA_BATCH];

            if (row_tile + j >= row_tiles)
                break;
#pragma unroll
            for (int i = 0; i < LORA_BATCH; i++)
                a[i] = load_b(rows, batch.a[i] + j * batch.stride[i]);
#pragma unroll
            for (int i = 0; i < LORA_BATCH; i++) {
                uint32_t tile[4];
                unsigned own = batch.own[i] >> (t * 8);
                float c[4] = {d[j][0], d[j][1], d[j][2], d[j][3]};

                b_tile(tile, rows, a[i]);
                mma_bf16(c, tile, batch.h[i]);
                d[j][0] = own & 1 ? c[0] : d[j][0];
                d[j][1] = own & 16 ? c[1] : d[j][1];
                d[j][2] = own & 1 ? c[2] : d[j][2];
                d[j][3] = own & 16 ? c[3] : d[j][3];
            }
        }
    }
}

/* The share of eight rows from `first` on, below `end`: d is set. `table` has their entries of
 * place 0 already; `spare` is room for 8. */
template <int TILES>
static __device__ void adapters_share(float (&d)[TILES][4], const linear_args &args, int part,
                                      int row_tile, int first, int end, const lora_entry *table,
                                      lora_entry *spare)
{
    int row_tiles = row_tiles_of(args.op.parts[part].w), n = longest_list(args, first, end);

#pragma unroll
    for (int i = 0; i < TILES; i++)
        d[i][0] = d[i][1] = d[i][2] = d[i][3] = 0;
    if (n > 0)
        add_entries<TILES>(d, table, args.rows, row_tile, row_tiles);
    for (int place = 1; place < n; place++) {
        find_entries(args, args.op.parts[part].module, first, end, place, spare, 8);
        add_entries<TILES>(d, spare, args.rows, row_tile, row_tiles);
    }
}

#endif
