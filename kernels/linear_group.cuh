/*
 * linear_group.cuh: the product for prefill where groups of warps multiply together (group.cuh):
 * blocks of 128 features x TOKENS tokens as walk_kernel's, and the same bits.
 *
 * Two groups multiply, 64 features each, 16 of them (a unit) a warp. Weights come from memory
 * straight into registers, as they are stored in the order of fragments, some stages of 64 columns
 * ahead. A third group copies x, which all features share, into a ring of stages in shared memory.
 * Each stage has two barriers: it has come, it was read. Nothing else holds the groups together, so
 * one multiplies while the other adds a run to the totals; these are in shared memory, as sums and
 * totals are more than there are registers.
 *
 * Adapters: where all tokens of a block have the same ones, as within a long prompt, h comes as
 * more stages and B as more weights. Elsewhere warps take eight tokens after eight
 * (linear_lora.cuh).
 */
#ifndef OL_LINEAR_GROUP_CUH
#define OL_LINEAR_GROUP_CUH

#include "kernels/group.cuh"
#include "kernels/linear_lora.cuh"
#include "kernels/linear_ring.cuh"

#define GROUP_BUSY (2 * GROUP) /* threads that multiply */
#define GROUP_THREADS (3 * GROUP)
#define BUSY_BARRIER 1 /* numbers for sync_some: of all that multiply, and of either group */
#define GROUP_BARRIER 2

/* Shared memory: the ring, totals, barriers, and where the tokens' h start. */
template <int TOKENS> struct group_shape {
    static const int stage = TOKENS * 128;
    static const int stages = 96 * 1024 / stage;
    static const int totals_at = stages * stage;
    static const int barriers_at = totals_at + TOKENS * TILE_FEATURES * (int)sizeof(float);
    static const int h_at = barriers_at + (2 * stages + 2) * (int)sizeof(uint64_t);
    static const int shared = h_at + TOKENS * (int)sizeof(int32_t);
};

#ifdef GROUP_PRODUCTS

template <int TOKENS> struct group_block {
    typedef group_shape<TOKENS> S;
    const linear_args &args;
    linear_place place;
    int first_row, n_tokens;
    bool adapters; /* may apply */
    uint8_t *shared;

    __device__ __forceinline__ float *totals() const
    {
        return (float *)(shared + S::totals_at);
    }
    __device__ __forceinline__ uint64_t *has_come(int slot) const
    {
        return (uint64_t *)(shared + S::barriers_at) + slot;
    }
    __device__ __forceinline__ uint64_t *was_read(int slot) const
    {
        return has_come(S::stages + slot);
    }
    /* The lists of the block's tokens were compared; whether they are alike. */
    __device__ __forceinline__ uint64_t *compared() const
    {
        return has_come(2 * S::stages);
    }
    __device__ __forceinline__ int32_t *alike() const
    {
        return (int32_t *)has_come(2 * S::stages + 1);
    }
    __device__ __forceinline__ int32_t *first_h() const
    {
        return (int32_t *)(shared + S::h_at);
    }
    __device__ __forceinline__ int depth() const
    {
        return depth_of(args.op.parts[place.part].w);
    }
};

/* By one thread, before a barrier of the block. */
template <int TOKENS>
static __device__ __forceinline__ void make_barriers(const group_block<TOKENS> &block)
{
    for (int i = 0; i < group_shape<TOKENS>::stages; i++) {
        barrier_make(block.has_come(i), GROUP / WARP);
        barrier_make(block.was_read(i), GROUP_BUSY / WARP);
    }
    barrier_make(block.compared(), GROUP_BUSY / WARP);
    *block.alike() = 1;
}

/* One thread for all of the warp, and what they did before. */
static __device__ __forceinline__ void warp_arrives(uint64_t *barrier)
{
    __syncwarp();
    if (threadIdx.x % WARP == 0)
        barrier_arrive(barrier);
}

/* The same for all lanes, and known to be: what a group does together must not hang on less. */
static __device__ __forceinline__ int for_all_lanes(int value)
{
    return __shfl_sync(FULL_MASK, value, 0);
}

/* -- the adapters of a block ----------------------------------------------------------------- */

static __device__ __forceinline__ const gpu_member *member_of(const linear_args &args, int row,
                                                              int place)
{
    const gpu_rows &rows = args.rows;

    return rows.members + rows.row_members[rows.member_start[member_row(args, row)] + place];
}

static __device__ __forceinline__ int list_length(const linear_args &args, int row)
{
    const int32_t *start = args.rows.member_start + member_row(args, row);

    return start[1] - start[0];
}

/* By those who multiply, a token each, while the first stages are on their way. */
template <int TOKENS>
static __device__ __forceinline__ void compare_lists(const group_block<TOKENS> &block)
{
    const linear_args &args = block.args;
    int token = (int)threadIdx.x, row = block.first_row + token;

    if (token < block.n_tokens) {
        int n = list_length(args, block.first_row);
        bool alike = list_length(args, row) == n;

        for (int i = 0; alike && i < n; i++)
            alike = member_of(args, row, i)->lora == member_of(args, block.first_row, i)->lora;
        if (!alike)
            *block.alike() = 0;
        else if (n > 0)
            block.first_h()[token] = member_of(args, row, 0)->h;
    }
    warp_arrives(block.compared());
}

/* Calls what(part, entry, place, k) for every stage of h that the block's tokens, whose lists are
 * alike, have: its tiles k .. k + 3 of the entry. */
template <int TOKENS, typename F>
static __device__ __forceinline__ void each_h_stage(const group_block<TOKENS> &block, F what)
{
    const linear_args &args = block.args;
    int last = args.op.finish == GPU_SWIGLU ? 1 : block.place.part;
    int row = member_row(args, block.first_row);
    int n = for_all_lanes(list_length(args, block.first_row));

    for (int part = block.place.part; part <= last; part++)
        for (int place = 0; place < n; place++) {
            lora_entry e = find_entry(args, args.op.parts[part].module, row, place);

            e.k_tiles = for_all_lanes(e.k_tiles);
            for (int k = 0; k < e.k_tiles; k += 4)
                what(part, e, place, k);
        }
}

/* -- copying ---------------------------------------------------------------------------------- */

/* The ring from the side that fills it: `late` stages are under way at most. */
template <int TOKENS> struct group_filler {
    typedef group_shape<TOKENS> S;
    static const int late = S::stages - 2;
    const group_block<TOKENS> &block;
    int begun, told; /* stages */

    /* Where the next one goes. */
    __device__ __forceinline__ uint8_t *begin()
    {
        int slot = begun % S::stages;

        barrier_wait(block.was_read(slot), 1 - begun / S::stages % 2);
        return block.shared + slot * S::stage;
    }
    __device__ __forceinline__ void tell()
    {
        fence_for_products();
        warp_arrives(block.has_come(told++ % S::stages));
    }
    __device__ __forceinline__ void end()
    {
        copy_async_commit();
        begun++;
        if (begun - told > late) {
            copy_async_wait<late>();
            tell();
        }
    }
    __device__ __forceinline__ void finish()
    {
        copy_async_wait<0>();
        while (told < begun)
            tell();
    }
};

/* A thread has 8 columns of every 16th token. */
template <int TOKENS>
static __device__ __forceinline__ void copy_x(const group_block<TOKENS> &block,
                                              group_filler<TOKENS> &filler)
{
    const gpu_linear &op = block.args.op;
    int thread = (int)threadIdx.x % GROUP, chunk = thread % 8, first = thread / 8;
    const uint16_t *x = op.x + (int64_t)(block.first_row + first) * op.ldx + chunk * 8;
    int64_t stride = 16 * op.ldx;

    for (int i = block.depth(); i > 0; i--, x += 64) {
        uint8_t *to = filler.begin() + x_offset<64>(first, chunk);
        const uint16_t *from = x;

#pragma unroll
        for (int token = 0; token < TOKENS; token += 16, from += stride)
            if (first + token < block.n_tokens)
                copy_async16(to + token * 128, from, true);
        filler.end();
    }
}

template <int TOKENS>
static __device__ __forceinline__ void copy_h(const group_block<TOKENS> &block,
                                              group_filler<TOKENS> &filler)
{
    const linear_args &args = block.args;
    int thread = (int)threadIdx.x % GROUP, chunk = thread % 8;

    each_h_stage(block, [&](int, const lora_entry &e, int place, int k) {
        uint8_t *to = filler.begin();
        const uint16_t *h = args.rows.h + e.h + k * 16 + chunk * 8;
        int start = member_of(args, block.first_row, place)->h;

        for (int token = thread / 8; token < block.n_tokens; token += 16) {
            int mine = place == 0 ? block.first_h()[token]
                                  : member_of(args, block.first_row + token, place)->h;

            if (chunk < 2 * (e.k_tiles - k))
                copy_async16(to + x_offset<64>(token, chunk), h + (mine - start), true);
        }
        filler.end();
    });
}

template <int TOKENS> static __device__ __forceinline__ void copy_all(group_block<TOKENS> &block)
{
    group_filler<TOKENS> filler = {block, 0, 0};

    copy_x(block, filler);
    if (block.adapters) {
        barrier_wait(block.compared(), 0);
        if (for_all_lanes(*block.alike()))
            copy_h(block, filler);
    }
    filler.finish();
}

/* -- multiplying --------------------------------------------------------------------------------
 */

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
    if (step >= end)
        return;
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
    const group_block<TOKENS> &block;
    int slot, parity;

    __device__ __forceinline__ const uint8_t *begin()
    {
        barrier_wait(block.has_come(slot), parity);
        return block.shared + slot * S::stage;
    }
    __device__ __forceinline__ void end()
    {
        warp_arrives(block.was_read(slot));
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
multiply_runs(const group_block<TOKENS> &block, const group_unit &unit,
              group_reader<TOKENS> &reader, float (&c)[TOKENS / 8][4])
{
    const gpu_matrix &w = block.args.op.parts[unit.part].w;
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
                    add_run(c, block.totals(), run++ == 0);
                    run_end = min(run_end + run_depth, depth);
                }
            }
    for (; run < w.splits; run++) /* without columns */
        add_run(c, block.totals(), run == 0);
}

/* -- the adapters' share ------------------------------------------------------------------------
 */

static __device__ __forceinline__ void add_share(float &total, float share,
                                                 const gpu_linear_part &part, int feature)
{
    if (part.bias && feature < part.w.rows)
        total += part.bias[feature];
    total += share;
}

/* Where lists are alike: as another run. */
template <int TOKENS>
static __device__ __forceinline__ void
share_alike(const group_block<TOKENS> &block, const group_unit &unit, group_reader<TOKENS> &reader,
            float (&c)[TOKENS / 8][4])
{
    const gpu_linear_part &p = block.args.op.parts[unit.part];
    int lane = (int)threadIdx.x % WARP, feature = unit.row_tile * 16 + lane / 4;

    each_h_stage(block, [&](int part, const lora_entry &e, int, int k) {
        const uint8_t *stage = reader.begin();

        if (part == unit.part) {
            const uint16_t *from = e.b + ((int64_t)unit.clamped * e.k_tiles + k) * 256 + lane * 8;
            uint32_t a[4][4] = {};

#pragma unroll
            for (int i = 0; i < 4; i++)
                if (k + i < e.k_tiles) {
                    uint4 v = *(const uint4 *)(from + i * 256);

                    a[i][0] = v.x, a[i][1] = v.y, a[i][2] = v.z, a[i][3] = v.w;
                }
            multiply_part(c, a, stage, e.k_tiles - k);
        }
        reader.end();
    });
    each_total(c, block.totals(), [&](float &share, float &total, int half) {
        add_share(total, share, p, feature + half * 8);
    });
}

/* Where they are not: eight tokens after eight. The ring is free, and has room for the tables. */
template <int TOKENS>
static __device__ void share_by_eights(const group_block<TOKENS> &block, const group_unit &unit)
{
    const linear_args &args = block.args;
    const gpu_linear_part &p = args.op.parts[unit.part];
    int group = (int)threadIdx.x / GROUP, warp = (int)threadIdx.x / WARP;
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int end_row = block.first_row + block.n_tokens;
    lora_entry *table = (lora_entry *)block.shared + group * TOKENS;
    lora_entry *spare = (lora_entry *)block.shared + 2 * TOKENS + warp * 8;

    sync_some(BUSY_BARRIER, GROUP_BUSY);
    for (int i = (int)threadIdx.x % GROUP; i < TOKENS; i += GROUP)
        table[i] = i < block.n_tokens
                       ? find_entry(args, p.module, member_row(args, block.first_row + i), 0)
                       : lora_entry{NULL, 0, 0};
    sync_some(GROUP_BARRIER + group, GROUP);
    for (int first = 0; first < block.n_tokens; first += 8) {
        float d[1][4];

        adapters_share<1>(d, args, unit.part, unit.row_tile, block.first_row + first, end_row,
                          table + first, spare);
#pragma unroll
        for (int e = 0; e < 4; e++)
            add_share(block.totals()[sum_index(first + 2 * t + e % 2, warp * 16 + g + e / 2 * 8,
                                               TILE_FEATURES, TILE_MASK)],
                      d[0][e], p, unit.row_tile * 16 + g + e / 2 * 8);
    }
}

/* -- from totals to y ----------------------------------------------------------------------------
 */

#define FINISH_AHEAD 4 /* rows of y that a thread asks for before it adds to them */

/* As finish(), by those who multiply. */
template <int TOKENS>
static __device__ __forceinline__ void finish_block(const group_block<TOKENS> &block)
{
    const gpu_linear &op = block.args.op;
    const gpu_linear_part &part = op.parts[block.place.part];
    linear_sums sums = {block.totals(), TILE_FEATURES, TILE_MASK, 0, 1, NULL, !block.adapters};
    const int fours = TILE_FEATURES / 4, stride = GROUP_BUSY / fours;
    int width = width_of(block.args, TILE_UNITS);
    int at = (int)threadIdx.x % fours * 4, feature = block.place.row_tile * 16 + at;
    int64_t column = block.place.column + feature;
    float *y = (float *)op.y + block.first_row * op.ldy + column;

    if (op.finish != GPU_ADD_F32 || column % 4 || op.ldy % 4 || feature + 4 > part.w.rows) {
        for (int i = (int)threadIdx.x; i < block.n_tokens * (width / 4); i += GROUP_BUSY)
            finish4(block.args, block.place, width, sums, block.first_row, i);
        return;
    }
    for (int i = (int)threadIdx.x / fours; i < block.n_tokens; i += stride * FINISH_AHEAD) {
        float4 was[FINISH_AHEAD];

#pragma unroll
        for (int j = 0; j < FINISH_AHEAD; j++)
            if (i + j * stride < block.n_tokens)
                was[j] = *(const float4 *)(y + (i + j * stride) * op.ldy);
#pragma unroll
        for (int j = 0; j < FINISH_AHEAD; j++)
            if (i + j * stride < block.n_tokens) {
                add4(was[j], whole_sum(sums, part, i + j * stride, at, feature));
                *(float4 *)(y + (i + j * stride) * op.ldy) = was[j];
            }
    }
}

template <int KIND, int TOKENS>
static __device__ __forceinline__ void multiply_all(const group_block<TOKENS> &block)
{
    group_reader<TOKENS> reader = {block, 0, 0};
    group_unit unit = find_unit<KIND>(block.args, block.place);
    float c[TOKENS / 8][4];

    if (block.adapters)
        compare_lists(block);
    multiply_runs<KIND, TOKENS>(block, unit, reader, c);
    if (block.adapters) {
        barrier_wait(block.compared(), 0);
        if (for_all_lanes(*block.alike()))
            share_alike(block, unit, reader, c);
        else
            share_by_eights(block, unit);
    }
    sync_some(BUSY_BARRIER, GROUP_BUSY);
    finish_block(block);
}
#endif

/* Grid: tiles of tokens x tiles of features. */
template <int KIND, int TOKENS>
static __global__ void __launch_bounds__(GROUP_THREADS, 1)
    group_kernel(const __grid_constant__ linear_args args)
{
#ifdef GROUP_PRODUCTS
    GPU_SHARED(shared);
    int tile = (int)blockIdx.y, first_row = (int)blockIdx.x * TOKENS;
    int n_tokens = min(real_rows(args) - first_row, TOKENS);
    group_block<TOKENS> block = {args,     find_part(args, tile), first_row,
                                 n_tokens, adapters_apply(args),  shared};

    if (n_tokens <= 0)
        return;
    find_units(args, block.place, tile, TILE_UNITS);
    if (threadIdx.x == 0)
        make_barriers(block);
    __syncthreads();
    if (for_all_lanes((int)threadIdx.x / GROUP) < GROUP_BUSY / GROUP) {
        take_registers<224>();
        multiply_all<KIND, TOKENS>(block);
    } else {
        give_registers<56>();
        copy_all(block);
    }
#endif
}

template <int KIND, int TOKENS>
static cudaError_t launch_group(const linear_args *args, int n_rows, cudaStream_t stream)
{
    return gpu_launch(group_kernel<KIND, TOKENS>,
                      dim3((unsigned)((n_rows + TOKENS - 1) / TOKENS), (unsigned)args->n_tiles),
                      dim3(GROUP_THREADS), (size_t)group_shape<TOKENS>::shared, stream, *args);
}

#endif
