/*
 * simt.cpp: a grid of blocks, the fibers of a block, and where they wait. See simt.h.
 *
 * A fiber runs until it has to wait: at a barrier of its block, or where its warp exchanges.
 * Then the next one goes on, in the order of threads or, with an even seed, in one that is
 * drawn anew for each block. With an odd seed the order of warps is drawn, and each goes as far
 * as it can before the next one moves: who passes a barrier too few is then far ahead. In every
 * second of these blocks one warp is slow: it moves when nobody else can, and stops where it has
 * arrived at a barrier without waiting there. When every fiber waits and none may go on, threads
 * have gone different ways to a barrier: the program ends and says so.
 */
#include <cuda_runtime.h>

#include "fiber.h"
#include "group.h"
#include "runtime.h"
#include "simt.h"

#include <algorithm>
#include <atomic>
#include <stdio.h>
#include <stdlib.h>
#include <thread>
#include <vector>

static const size_t stack_bytes = 128 * 1024;
static const int exchange_slot = 64;

struct pending_copy {
    void *to;
    const void *from;
    bool valid;
    int group;
};

struct warp_state {
    int arrived, lanes;
    unsigned turn;
    alignas(64) uint8_t given[2][WARP * exchange_slot];
};

struct worker;

struct simt_fiber {
    simt_thread ids;
    fiber stack;
    worker *home;
    int index;
    bool done, has_to_wait;
    bool (*ready)(simt_fiber *f); /* NULL: may go on */
    unsigned waits_for;           /* a turn of the block's barrier, or of the warp's exchange */
    bool (*until)(const void *arg, unsigned value); /* simt_wait_until() */
    const void *until_arg;
    std::vector<pending_copy> copies;
    int groups; /* of copies that were ended */
    simt_group_state group;
};

/* What one thread of the processor needs to run blocks. */
struct worker {
    fiber main;
    std::vector<simt_fiber *> fibers;
    std::vector<warp_state> warps;
    std::vector<int> order;
    simt_block_state block;
    const std::function<void()> *body;
    int live, at_barrier;
    unsigned barrier_turn, seed;
    bool slow; /* the first warp in the order is */
    bool held; /* in wait_for_previous() */
};

static thread_local simt_fiber *self;

static simt_options defaults()
{
    simt_options o = {};

    o.threads = 2;
    o.fail_after = -1;
    return o;
}

simt_options simt_settings = defaults();

const simt_thread *simt_self()
{
    return &self->ids;
}

uint8_t *simt_shared()
{
    return self->home->block.shared;
}

simt_group_state *simt_group_of_thread()
{
    return &self->group;
}

simt_block_state *simt_block_of_thread()
{
    return &self->home->block;
}

int simt_lane()
{
    return self->index % WARP;
}

static void give_way(bool (*ready)(simt_fiber *))
{
    simt_fiber *f = self;

    f->ready = ready;
    fiber_switch(&f->stack, &f->home->main);
    self = f;
}

static bool condition_holds(simt_fiber *f)
{
    return f->until(f->until_arg, f->waits_for);
}

void simt_wait_until(bool (*ready)(const void *arg, unsigned value), const void *arg,
                     unsigned value)
{
    if (ready(arg, value))
        return;
    self->until = ready;
    self->until_arg = arg;
    self->waits_for = value;
    give_way(condition_holds);
}

void simt_linger()
{
    const std::vector<int> &order = self->home->order;

    if (self->home->slow && self->index / WARP == order[0] / WARP)
        give_way(NULL);
}

void simt_has_to_wait()
{
    self->has_to_wait = true;
}

static bool let_go(simt_fiber *f)
{
    return !f->home->held;
}

void wait_for_previous()
{
    self->has_to_wait = false;
    if (self->home->held)
        give_way(let_go);
}

/* -- barriers ---------------------------------------------------------------------------- */

static bool past_barrier(simt_fiber *f)
{
    return f->home->barrier_turn != f->waits_for;
}

void __syncthreads()
{
    worker *w = self->home;

    if (++w->at_barrier == w->live) {
        w->at_barrier = 0;
        w->barrier_turn++;
        return;
    }
    self->waits_for = w->barrier_turn;
    give_way(past_barrier);
}

static bool past_exchange(simt_fiber *f)
{
    return f->home->warps[f->index / WARP].turn != f->waits_for;
}

const uint8_t *simt_exchange(const void *mine, size_t bytes)
{
    warp_state *warp = &self->home->warps[self->index / WARP];
    unsigned turn = warp->turn;
    uint8_t *given = warp->given[turn % 2];

    if (bytes > (size_t)exchange_slot)
        abort();
    memcpy(given + exchange_slot * (self->index % WARP), mine, bytes);
    if (++warp->arrived == warp->lanes) {
        warp->arrived = 0;
        warp->turn++;
        return given;
    }
    self->waits_for = turn;
    give_way(past_exchange);
    return given;
}

void __syncwarp(unsigned)
{
    char nothing = 0;

    simt_exchange(&nothing, 1);
}

unsigned __ballot_sync(unsigned, int predicate)
{
    int mine = predicate != 0;
    const uint8_t *all = simt_exchange(&mine, sizeof(mine));
    unsigned votes = 0;

    for (int i = 0; i < WARP; i++) {
        int vote;

        memcpy(&vote, all + exchange_slot * i, sizeof(vote));
        votes |= (unsigned)vote << i;
    }
    return votes;
}

/* -- matrices ------------------------------------------------------------------------------ */

void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const uint8_t *all = simt_exchange(mine, sizeof(mine));
    int g = simt_lane() / 4, t = simt_lane() % 4;

    for (int e = 0; e < 4; e++) {
        int row = g + 8 * (e / 2), col = 2 * t + e % 2;
        float sum = c[e];

        for (int k = 0; k < 16; k += 2) {
            const uint8_t *from_a = all + exchange_slot * (row % 8 * 4 + k % 8 / 2);
            const uint8_t *from_b = all + exchange_slot * (col * 4 + k % 8 / 2);
            uint32_t x, y;

            memcpy(&x, from_a + 4 * (row / 8 + 2 * (k / 8)), 4);
            memcpy(&y, from_b + 4 * (4 + k / 8), 4);
            sum += bf16_low(x) * bf16_low(y);
            sum += bf16_high(x) * bf16_high(y);
        }
        c[e] = sum;
    }
}

static void load_matrices(uint32_t (&r)[4], const void *row, bool transposed)
{
    const uint8_t *all = simt_exchange(&row, sizeof(row));
    int g = simt_lane() / 4, t = simt_lane() % 4;

    for (int m = 0; m < 4; m++) {
        uint16_t pair[2];

        for (int i = 0; i < 2; i++) {
            int from_row = transposed ? 2 * t + i : g, from_col = transposed ? g : 2 * t + i;
            const uint16_t *at;

            memcpy(&at, all + exchange_slot * (8 * m + from_row), sizeof(at));
            if ((uintptr_t)at % 16) {
                fprintf(stderr, "simt: a row of a matrix is not aligned\n");
                abort();
            }
            pair[i] = at[from_col];
        }
        r[m] = (uint32_t)pair[0] | (uint32_t)pair[1] << 16;
    }
    __syncwarp(); /* no lane writes what another has yet to read */
}

void load_matrix4(uint32_t (&r)[4], const void *row)
{
    load_matrices(r, row, false);
}

void load_matrix4_transposed(uint32_t (&r)[4], const void *row)
{
    load_matrices(r, row, true);
}

/* -- copies: they arrive when somebody waits for them, or, with some seeds, at once ------------ */

void simt_misaligned()
{
    fprintf(stderr, "simt: a load or copy is not aligned\n");
    abort();
}

static void arrive(const pending_copy &copy)
{
    if (copy.valid)
        memcpy(copy.to, copy.from, 16);
    else
        memset(copy.to, 0, 16);
    simt_landed(copy.to);
}

void copy_async16(void *to, const void *from, bool valid)
{
    if ((uintptr_t)to % 16 || (valid && (uintptr_t)from % 16))
        simt_misaligned();
    if (simt_settings.seed % 4 == 2)
        arrive({to, from, valid, 0});
    else
        self->copies.push_back({to, from, valid, self->groups});
}

void copy_async_commit()
{
    self->groups++;
}

void simt_copy_wait(int n)
{
    std::vector<pending_copy> &copies = self->copies;
    size_t done = 0;

    while (done < copies.size() && copies[done].group < self->groups - n)
        arrive(copies[done++]);
    copies.erase(copies.begin(), copies.begin() + (ptrdiff_t)done);
}

float f16_value(uint16_t v)
{
    int exponent = v >> 10 & 31, mantissa = v & 1023;
    float x = exponent == 31  ? (mantissa ? NAN : INFINITY)
              : exponent == 0 ? ldexpf((float)mantissa, -24)
                              : ldexpf((float)(mantissa + 1024), exponent - 25);

    return v & 0x8000 ? -x : x;
}

uint16_t f16_nearest(float v)
{
    uint16_t sign = __float_as_uint(v) >> 31 ? 0x8000 : 0;
    float x = fabsf(v);
    int exponent;

    if (!(x < 65520))
        return sign | (x != x ? 0x7e00 : 0x7c00);
    if (x < 0x1p-14f)
        return sign | (uint16_t)rintf(ldexpf(x, 24));
    frexpf(x, &exponent); /* x = f * 2^exponent, f in [1/2, 1) */
    return sign | (uint16_t)(((exponent + 13) << 10) + (int)rintf(ldexpf(x, 11 - exponent)));
}

/* -- a block ----------------------------------------------------------------------------------- */

/* A fiber starts anew with each block: it never goes on, on another thread of the processor,
 * in the middle of a function that knows where `self` of the one before was. */
static void thread_main()
{
    fiber_entered();
    simt_fiber *f = self;
    worker *w = f->home;

    (*w->body)();
    if (!f->copies.empty()) {
        fprintf(stderr, "simt: a thread ended with copies under way\n");
        abort();
    }
    simt_group_end();
    if (f->has_to_wait) {
        fprintf(stderr, "simt: a thread of an early launch ended without wait_for_previous()\n");
        abort();
    }
    f->done = true;
    w->live--;
    w->warps[(size_t)f->index / WARP].lanes--;
    if (w->live > 0 && w->at_barrier == w->live) {
        w->at_barrier = 0;
        w->barrier_turn++;
    }
    fiber_switch(&f->stack, &w->main);
    abort();
}

static void prepare(worker *w, int threads)
{
    while ((int)w->fibers.size() < threads) {
        simt_fiber *f = new simt_fiber();

        f->home = w;
        f->index = (int)w->fibers.size();
        fiber_make(&f->stack, stack_bytes, thread_main);
        w->fibers.push_back(f);
    }
    w->warps.resize((size_t)threads / WARP);
    w->order.resize((size_t)threads);
}

/* The order of fibers: with an odd seed only that of warps changes. */
static void shuffle(worker *w, unsigned seed, int threads)
{
    uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
    int grain = seed % 2 ? WARP : 1;

    for (int i = 0; i < threads; i++)
        w->order[(size_t)i] = i;
    for (int i = threads / grain - 1; seed && i > 0; i--) {
        int j;

        state = state * 6364136223846793005u + 1442695040888963407u;
        j = (int)((state >> 33) % (uint64_t)(i + 1));
        for (int k = 0; k < grain; k++)
            std::swap(w->order[(size_t)(i * grain + k)], w->order[(size_t)(j * grain + k)]);
    }
}

/* Fibers from .. to - 1 of the order, each until it has to wait; whether any moved. */
static bool run_fibers(worker *w, int from, int to)
{
    bool moved = false;

    for (int i = from; i < to; i++) {
        simt_fiber *f = w->fibers[(size_t)w->order[(size_t)i]];

        if (f->done || (f->ready && !f->ready(f)))
            continue;
        moved = true;
        f->ready = NULL;
        self = f;
        fiber_switch(&w->main, &f->stack);
    }
    return moved;
}

static bool run_warps(worker *w, int threads)
{
    bool moved = false;

    for (int i = w->slow ? WARP : 0; i < threads; i += WARP)
        while (run_fibers(w, i, i + WARP))
            moved = true;
    return moved || (w->slow && run_fibers(w, 0, WARP));
}

static void start_block(worker *w, dim3 block, dim3 grid, dim3 dim,
                        const std::function<void()> *body, unsigned seed)
{
    int threads = (int)(dim.x * dim.y * dim.z);

    prepare(w, threads);
    shuffle(w, seed, threads);
    for (warp_state &warp : w->warps) {
        warp.arrived = 0;
        warp.lanes = WARP;
    }
    w->body = body;
    w->seed = seed;
    w->slow = seed % 4 == 3;
    w->live = threads;
    w->at_barrier = 0;
    for (int i = 0; i < threads; i++) {
        simt_fiber *f = w->fibers[(size_t)i];

        f->ids = {
            dim3((unsigned)i % dim.x, (unsigned)i / dim.x % dim.y, (unsigned)i / dim.x / dim.y),
            block, dim, grid};
        fiber_reset(&f->stack, thread_main);
        f->done = f->has_to_wait = false;
        f->ready = NULL;
        f->groups = 0;
        f->copies.clear();
        f->group = {};
    }
}

/* To its end; or, if it is held, to where all that are left wait to be let go. */
static void run_block(worker *w)
{
    while (w->live > 0) {
        int threads = (int)w->order.size();
        bool moved = w->seed % 2 ? run_warps(w, threads) : run_fibers(w, 0, threads);

        if (!moved && w->held)
            return;
        if (!moved) {
            dim3 block = w->fibers[0]->ids.block;

            fprintf(stderr,
                    "simt: block %u,%u,%u: threads wait for each other at different places\n",
                    block.x, block.y, block.z);
            abort();
        }
    }
}

/* -- a grid ------------------------------------------------------------------------------------ */

/* Block i, up to where it first may be held. */
static void begin_block(worker *w, unsigned i, dim3 grid, dim3 block, size_t shared,
                        const std::function<void()> *body)
{
    /* of exactly this size, so that AddressSanitizer sees what goes beyond */
    if (posix_memalign((void **)&w->block.shared, 1024, shared ? shared : 1))
        abort();
    w->block.bytes = shared;
    w->block.unfenced.assign((shared + 15) / 16, 0);
    memset(w->block.arrived, 0, sizeof(w->block.arrived));
    memset(w->block.shared, 0xff, shared);
    start_block(w, dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y), grid, block, body,
                simt_settings.seed ? simt_settings.seed + 2 * i : 0);
    run_block(w);
}

static void end_block(worker *w)
{
    w->held = false;
    run_block(w);
    free(w->block.shared);
    w->block.shared = NULL;
}

static void run_some(worker *w, std::atomic<unsigned> *next, dim3 grid, dim3 block, size_t shared,
                     const std::function<void()> *body, const simt_ahead *ahead)
{
    unsigned n = grid.x * grid.y * grid.z;

    for (unsigned i = (*next)++; i < n; i = (*next)++)
        if (!ahead || !ahead->w || ahead->block != i) {
            begin_block(w, i, grid, block, shared, body);
            end_block(w);
        }
}

static std::vector<worker *> &workers = *new std::vector<worker *>(); /* until the end */
static std::vector<worker *> &spare = *new std::vector<worker *>();   /* for blocks ahead */

/* Its launch never came: a kernel has failed. */
void simt_ahead::give_up()
{
    if (!w)
        return;
    free(w->block.shared);
    spare.push_back(w);
    w = NULL;
}

void simt_begin_ahead(simt_ahead *ahead, dim3 grid, dim3 block, size_t shared,
                      const std::function<void()> &body)
{
    static unsigned turn;

    ahead->give_up();
    if (spare.empty())
        spare.push_back(new worker());
    ahead->block = turn++ % (grid.x * grid.y * grid.z);
    ahead->w = spare.back();
    spare.pop_back();
    ahead->w->held = true;
    begin_block(ahead->w, ahead->block, grid, block, shared, &body);
}

void simt_run_grid(dim3 grid, dim3 block, size_t shared, const std::function<void()> &body,
                   simt_ahead *ahead)
{
    std::atomic<unsigned> next(0);
    std::vector<std::thread> threads;
    unsigned n = grid.x * grid.y * grid.z;
    int many = std::max(1, std::min(simt_settings.threads, (int)n));

    if (block.x * block.y * block.z % WARP) {
        fprintf(stderr, "simt: a block of %u threads is not of whole warps\n",
                block.x * block.y * block.z);
        abort();
    }
    while ((int)workers.size() < many)
        workers.push_back(new worker());
    for (int i = 1; i < many; i++)
        threads.emplace_back(run_some, workers[(size_t)i], &next, grid, block, shared, &body,
                             ahead);
    run_some(workers[0], &next, grid, block, shared, &body, ahead);
    for (std::thread &t : threads)
        t.join();
    if (ahead && ahead->w) {
        end_block(ahead->w);
        spare.push_back(ahead->w);
        ahead->w = NULL;
    }
}
