/*
 * linear_group_ring.cuh: what the groups of linear_group.cuh share: memory and barriers, which tile
 * is computed, which adapters its tokens have; and the ring of stages from the side that fills it.
 */
#ifndef OL_LINEAR_GROUP_RING_CUH
#define OL_LINEAR_GROUP_RING_CUH

#include "kernels/group.cuh"
#include "kernels/linear_lora.cuh"
#include "kernels/linear_ring.cuh"

#define GROUP_BUSY (2 * GROUP) /* threads that multiply */
#define GROUP_THREADS (3 * GROUP)
#define BUSY_BARRIER 1 /* numbers for sync_some: of all that multiply, and of either group */
#define GROUP_BARRIER 2

/* Shared memory: the ring, totals, barriers, two flags, and where the tokens' h start. */
template <int TOKENS> struct group_shape {
    static const int stage = TOKENS * 128;
    static const int stages = 96 * 1024 / stage;
    static const int totals_at = stages * stage;
    static const int barriers_at = totals_at + TOKENS * TILE_FEATURES * (int)sizeof(float);
    static const int flags_at = barriers_at + (2 * stages + 3) * (int)sizeof(uint64_t);
    static const int h_at = flags_at + 2 * (int)sizeof(int32_t);
    static const int shared = h_at + TOKENS * (int)sizeof(int32_t);
    static_assert(shared <= GROUP_SHARED, "a block has more shared memory than was asked for");
};

#ifdef GROUP_PRODUCTS

template <int TOKENS> struct group_memory {
    typedef group_shape<TOKENS> S;
    uint8_t *ring;

    __device__ __forceinline__ float *totals() const
    {
        return (float *)(ring + S::totals_at);
    }
    /* A stage is in its slot; nobody needs it there any more. */
    __device__ __forceinline__ uint64_t *has_come(int slot) const
    {
        return (uint64_t *)(ring + S::barriers_at) + slot;
    }
    __device__ __forceinline__ uint64_t *was_read(int slot) const
    {
        return has_come(S::stages + slot);
    }
    /* The lists of a tile's tokens were compared: of even and of odd tiles, as those who multiply
     * may compare the next one's while a warp that copies has yet to look. */
    __device__ __forceinline__ uint64_t *compared(int number) const
    {
        return has_come(2 * S::stages + number % 2);
    }
    /* Those who multiply are done with it. */
    __device__ __forceinline__ uint64_t *finished() const
    {
        return has_come(2 * S::stages + 2);
    }
    /* Whether the lists are alike: of even and of odd tiles. */
    __device__ __forceinline__ int32_t *alike(int number) const
    {
        return (int32_t *)(ring + S::flags_at) + number % 2;
    }
    __device__ __forceinline__ int32_t *first_h() const
    {
        return (int32_t *)(ring + S::h_at);
    }
};

/* By one thread, before a barrier of the block. */
template <int TOKENS>
static __device__ __forceinline__ void make_barriers(const group_memory<TOKENS> &memory)
{
    for (int i = 0; i < group_shape<TOKENS>::stages; i++) {
        barrier_make(memory.has_come(i), GROUP / WARP);
        barrier_make(memory.was_read(i), GROUP_BUSY / WARP);
    }
    barrier_make(memory.compared(0), GROUP_BUSY / WARP);
    barrier_make(memory.compared(1), GROUP_BUSY / WARP);
    barrier_make(memory.finished(), GROUP_BUSY / WARP);
    *memory.alike(0) = *memory.alike(1) = 1;
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

/* -- tiles ----------------------------------------------------------------------------------------
 * All that a block is given: those who multiply and those who copy count them alike. */

/* A tile of a block: its `number`-th. */
template <int TOKENS> struct group_tile_job {
    const linear_args &args;
    group_memory<TOKENS> memory;
    linear_place place;
    int first_row, n_tokens, number;
};

template <int TOKENS> static __device__ __forceinline__ int token_tiles(const linear_args &args)
{
    return (real_rows(args) + TOKENS - 1) / TOKENS;
}

/* Tile i of the product: those of the same features are neighbours. */
template <int TOKENS>
static __device__ __forceinline__ group_tile_job<TOKENS>
find_job(const linear_args &args, const group_memory<TOKENS> &memory, int i, int number)
{
    int across = token_tiles<TOKENS>(args), tile = i / across, first_row = i % across * TOKENS;
    group_tile_job<TOKENS> job = {
        args,  memory, find_part(args, tile), first_row, min(real_rows(args) - first_row, TOKENS),
        number};

    find_units(args, job.place, tile, TILE_UNITS);
    return job;
}

/* Calls what(job) for all tiles of the block. */
template <int TOKENS, typename F>
static __device__ __forceinline__ void each_job(const linear_args &args,
                                                const group_memory<TOKENS> &memory, F what)
{
    int n = token_tiles<TOKENS>(args) * args.n_tiles;

    for (int i = (int)blockIdx.x, number = 0; i < n; i += (int)gridDim.x, number++)
        what(find_job(args, memory, i, number));
}

/* -- the adapters of a tile ------------------------------------------------------------------ */

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
static __device__ __forceinline__ void compare_lists(const group_tile_job<TOKENS> &job)
{
    const linear_args &args = job.args;
    int token = (int)threadIdx.x, row = job.first_row + token;

    if (token < job.n_tokens) {
        int n = list_length(args, job.first_row);
        bool alike = list_length(args, row) == n;

        for (int i = 0; alike && i < n; i++)
            alike = member_of(args, row, i)->lora == member_of(args, job.first_row, i)->lora;
        if (!alike)
            *job.memory.alike(job.number) = 0;
        else if (n > 0)
            job.memory.first_h()[token] = member_of(args, row, 0)->h;
    }
    warp_arrives(job.memory.compared(job.number));
}

/* What compare_lists() found, once all have come there. */
template <int TOKENS>
static __device__ __forceinline__ bool lists_alike(const group_tile_job<TOKENS> &job)
{
    barrier_wait(job.memory.compared(job.number), job.number / 2 % 2);
    return for_all_lanes(*job.memory.alike(job.number));
}

/* Calls what(part, entry, place, k) for every stage of h that the tile's tokens, whose lists are
 * alike, have: its tiles k .. k + 3 of the entry. */
template <int TOKENS, typename F>
static __device__ __forceinline__ void each_h_stage(const group_tile_job<TOKENS> &job, F what)
{
    const linear_args &args = job.args;
    int last = args.op.finish == GPU_SWIGLU ? 1 : job.place.part;
    int row = member_row(args, job.first_row);
    int n = for_all_lanes(list_length(args, job.first_row));

    for (int part = job.place.part; part <= last; part++)
        for (int place = 0; place < n; place++) {
            lora_entry e = find_entry(args, args.op.parts[part].module, row, place);

            e.k_tiles = for_all_lanes(e.k_tiles);
            for (int k = 0; k < e.k_tiles; k += 4)
                what(part, e, place, k);
        }
}

/* -- filling the ring -------------------------------------------------------------------------- */

/* `late` stages are under way at most. */
template <int TOKENS> struct group_filler {
    typedef group_shape<TOKENS> S;
    static const int late = S::stages - 2;
    group_memory<TOKENS> memory;
    int begun, told; /* stages */

    /* Where the next one goes. */
    __device__ __forceinline__ uint8_t *begin()
    {
        int slot = begun % S::stages;

        barrier_wait(memory.was_read(slot), 1 - begun / S::stages % 2);
        return memory.ring + slot * S::stage;
    }
    __device__ __forceinline__ void tell()
    {
        fence_for_products();
        warp_arrives(memory.has_come(told++ % S::stages));
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
    /* All that was begun has come. */
    __device__ __forceinline__ void finish()
    {
        copy_async_wait<0>();
        while (told < begun)
            tell();
    }
};

/* What the tile is added to, from far memory to the second-level cache. */
template <int TOKENS>
static __device__ __forceinline__ void prefetch_y(const group_tile_job<TOKENS> &job)
{
    const gpu_linear &op = job.args.op;
    int thread = (int)threadIdx.x % GROUP, feature = job.place.row_tile * 16 + thread % 4 * 32;
    const float *y = (const float *)op.y + job.place.column + feature;

    if (op.finish == GPU_ADD_F32 && feature < op.parts[job.place.part].w.rows)
        for (int token = thread / 4; token < job.n_tokens; token += GROUP / 4)
            prefetch(y + (job.first_row + token) * op.ldy);
}

/* A thread has 8 columns of every 16th token. */
template <int TOKENS>
static __device__ __forceinline__ void copy_x(const group_tile_job<TOKENS> &job,
                                              group_filler<TOKENS> &filler)
{
    const gpu_linear &op = job.args.op;
    int thread = (int)threadIdx.x % GROUP, chunk = thread % 8, first = thread / 8;
    const uint16_t *x = op.x + (int64_t)(job.first_row + first) * op.ldx + chunk * 8;
    int64_t stride = 16 * op.ldx;

    for (int i = depth_of(op.parts[job.place.part].w); i > 0; i--, x += 64) {
        uint8_t *to = filler.begin() + x_offset<64>(first, chunk);
        const uint16_t *from = x;

#pragma unroll 8
        for (int token = 0; token < TOKENS; token += 16, from += stride)
            if (first + token < job.n_tokens)
                copy_async16(to + token * 128, from, true);
        filler.end();
    }
    prefetch_y(job);
}

template <int TOKENS>
static __device__ __forceinline__ void copy_h(const group_tile_job<TOKENS> &job,
                                              group_filler<TOKENS> &filler)
{
    const linear_args &args = job.args;
    int thread = (int)threadIdx.x % GROUP, chunk = thread % 8;

    each_h_stage(job, [&](int, const lora_entry &e, int place, int k) {
        uint8_t *to = filler.begin();
        const uint16_t *h = args.rows.h + e.h + k * 16 + chunk * 8;
        int start = member_of(args, job.first_row, place)->h;

        for (int token = thread / 8; token < job.n_tokens; token += 16) {
            int mine = place == 0 ? job.memory.first_h()[token]
                                  : member_of(args, job.first_row + token, place)->h;

            if (chunk < 2 * (e.k_tiles - k))
                copy_async16(to + x_offset<64>(token, chunk), h + (mine - start), true);
        }
        filler.end();
    });
}

/* Of all tiles of the block, as far ahead as the ring goes: the next tile's while one is finished.
 * Where lists are not alike those who multiply use the ring for something else before they end. */
template <int TOKENS>
static __device__ __forceinline__ void copy_all(const linear_args &args,
                                                const group_memory<TOKENS> &memory)
{
    group_filler<TOKENS> filler = {memory, 0, 0};

    each_job(args, memory, [&](const group_tile_job<TOKENS> &job) {
        copy_x(job, filler);
        if (!adapters_apply(args))
            return;
        filler.finish();
        if (lists_alike(job))
            copy_h(job, filler);
        else
            barrier_wait(memory.finished(), job.number % 2);
    });
    filler.finish();
}
#endif

#endif
