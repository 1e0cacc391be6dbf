/* group.cpp: see group.h. */
#include "group.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

unsigned long long simt_group_products;

static const uint32_t window = 1024;           /* address of a block's shared memory */
static const uint32_t under_way = 0x7fc0f00du; /* a NaN: sums that are not there yet */

static void die(const char *what)
{
    fprintf(stderr, "simt: %s\n", what);
    abort();
}

uint32_t shared_address(const void *p)
{
    simt_block_state *block = simt_block_of_thread();

    if ((const uint8_t *)p < block->shared || (const uint8_t *)p >= block->shared + block->bytes)
        die("an address is not in shared memory");
    return (uint32_t)((const uint8_t *)p - block->shared) + window;
}

/* -- products --------------------------------------------------------------------------------- */

void group_begin()
{
    simt_group_of_thread()->begun = true;
}

void group_commit()
{
    simt_group_of_thread()->groups++;
}

static simt_sums *sums_of(simt_group_state *state, float *c)
{
    for (simt_sums &s : state->sums)
        if (s.c == c)
            return &s;
    return NULL;
}

static bool from_launch(int n)
{
    return n > 0 && simt_launches >= (unsigned long long)n;
}

void simt_group_multiply(float *c, int n, const uint32_t *a, uint64_t b)
{
    simt_group_state *state = simt_group_of_thread();

    if (from_launch(simt_settings.group_dies))
        raise(SIGKILL);
    if (!state->begun)
        die("a product without group_begin() before it");
    if (!sums_of(state, c)) {
        state->sums.push_back({c, std::vector<float>(c, c + 4 * n)});
        for (int i = 0; i < 4 * n; i++)
            memcpy(&c[i], &under_way, 4);
    }
    state->products.push_back({c, n, a, b, state->groups});
    __atomic_fetch_add(&simt_group_products, 1, __ATOMIC_RELAXED);
}

/* Eight numbers of the sum, from the `half`-th on, of column `column` of B, as the descriptor has
 * it: K-major with the swizzle of 128 bytes. */
static const uint16_t *eight_of_b(uint64_t b, int column, int half)
{
    simt_block_state *block = simt_block_of_thread();
    uint32_t start = (uint32_t)(b & 0x3fff) * 16, stride = (uint32_t)(b >> 32 & 0x3fff) * 16;
    uint32_t at = start + (uint32_t)(column / 8) * stride + (uint32_t)(column % 8) * 128 +
                  (uint32_t)half * 16;

    if (b >> 46 != (uint64_t)1 << 16 || start % 1024 >= 128)
        die("a descriptor that group_tile() does not make");
    at = (at ^ (at >> 7 & 7) << 4) - window;
    if (at + 16 > block->bytes)
        die("a product reads beyond shared memory");
    if (block->unfenced[at / 16])
        die("a product reads what was copied but not fenced");
    return (const uint16_t *)(block->shared + at);
}

/* Other sums than mma_bf16's, where that is wanted: pairs first. */
static float add16(float sum, const float *x, const uint16_t *y, bool differs)
{
    for (int k = 0; k < 8; k += 2) {
        float p = x[k] * bf16_value(y[k]), q = x[k + 1] * bf16_value(y[k + 1]);

        if (differs)
            sum += p + q;
        else
            sum = sum + p + q;
    }
    return sum;
}

/* Rows g and g + 8 of the warp's A, 16 numbers each. */
static void rows_of_a(const simt_product &p, float (&rows)[2][16])
{
    const uint8_t *all = simt_exchange(p.a, 16);
    int g = simt_lane() / 4;

    for (int k = 0; k < 16; k += 2)
        for (int half = 0; half < 2; half++) {
            uint32_t v;

            memcpy(&v, all + 64 * (g * 4 + k % 8 / 2) + 4 * (half + k / 8 * 2), 4);
            rows[half][k] = bf16_low(v);
            rows[half][k + 1] = bf16_high(v);
        }
}

static void compute(const simt_product &p, std::vector<float> &sums, bool differs)
{
    float rows[2][16];
    int t = simt_lane() % 4;

    rows_of_a(p, rows);
    for (int j = 0; j < p.n; j++)
        for (int e = 0; e < 4; e++) {
            int column = j * 8 + 2 * t + e % 2;
            float sum = sums[(size_t)(j * 4 + e)];

            sum = add16(sum, rows[e / 2], eight_of_b(p.b, column, 0), differs);
            sums[(size_t)(j * 4 + e)] =
                add16(sum, rows[e / 2] + 8, eight_of_b(p.b, column, 1), differs);
        }
}

/* Nothing is under way for them any more. */
static void give_sums(simt_group_state *state, size_t i)
{
    simt_sums &s = state->sums[i];

    for (const simt_product &p : state->products)
        if (p.c == s.c)
            return;
    for (size_t k = 0; k < s.values.size(); k++) {
        if (__float_as_uint(s.c[k]) != under_way)
            die("sums were touched while their product was under way");
        s.c[k] = s.values[k];
    }
    s.c = NULL;
}

/* Whether it rounds otherwise: those of adapters are each a group of its own. */
static bool differs(const simt_group_state *state, const simt_product &p)
{
    int from = simt_settings.group_differs, n = 0;

    for (const simt_product &other : state->products)
        n += other.group == p.group;
    return from < 0 ? from_launch(-from) && n == 1 : from_launch(from);
}

void simt_group_wait(int n)
{
    simt_group_state *state = simt_group_of_thread();
    size_t done = 0;

    for (; done < state->products.size(); done++) {
        const simt_product &p = state->products[done];

        if (p.group >= state->groups - n)
            break;
        compute(p, sums_of(state, p.c)->values, differs(state, p));
    }
    state->products.erase(state->products.begin(), state->products.begin() + (ptrdiff_t)done);
    for (size_t i = 0; i < state->sums.size(); i++)
        give_sums(state, i);
    for (size_t i = state->sums.size(); i > 0; i--)
        if (!state->sums[i - 1].c)
            state->sums.erase(state->sums.begin() + (ptrdiff_t)i - 1);
    state->begun = false;
}

void simt_landed(const void *to)
{
    simt_block_state *block = simt_block_of_thread();
    size_t at = (size_t)((const uint8_t *)to - block->shared);

    if ((const uint8_t *)to >= block->shared && at < block->bytes) {
        block->unfenced[at / 16]++;
        simt_group_of_thread()->landed.push_back(at / 16);
    }
}

void fence_for_products()
{
    simt_group_state *state = simt_group_of_thread();

    for (size_t at : state->landed)
        simt_block_of_thread()->unfenced[at]--;
    state->landed.clear();
}

void simt_group_end()
{
    simt_group_state *state = simt_group_of_thread();

    if (!state->products.empty())
        die("a thread ended with products under way");
    state->landed.clear();
    state->groups = 0;
    state->begun = false;
}

/* -- barriers ---------------------------------------------------------------------------------- */

/* How a barrier looks in shared memory: what it is, how many it waits for, how many are missing,
 * the phase. */
struct simt_barrier {
    uint16_t mark, count, missing, phase;
};
static const uint16_t barrier_mark = 0xba55;

static simt_barrier *barrier_at(uint64_t *p)
{
    simt_barrier *b = (simt_barrier *)p;

    (void)shared_address(p);
    if (b->mark != barrier_mark)
        die("a barrier that was not made");
    return b;
}

void barrier_make(uint64_t *barrier, int count)
{
    simt_barrier b = {barrier_mark, (uint16_t)count, (uint16_t)count, 0};

    (void)shared_address(barrier);
    memcpy(barrier, &b, sizeof(b));
}

void barrier_arrive(uint64_t *barrier)
{
    simt_barrier *b = barrier_at(barrier);

    if (--b->missing == 0) {
        b->missing = b->count;
        b->phase++;
    }
    simt_linger();
}

static bool phase_ended(const void *barrier, unsigned parity)
{
    return ((const simt_barrier *)barrier)->phase % 2 != parity;
}

void barrier_wait(uint64_t *barrier, int parity)
{
    simt_wait_until(phase_ended, barrier_at(barrier), (unsigned)parity);
}

static bool turn_passed(const void *turn, unsigned value)
{
    return *(const unsigned *)turn != value;
}

void sync_some(int number, int threads)
{
    simt_block_state *block = simt_block_of_thread();

    if (number < 1 || number > 15 || threads % WARP)
        die("a barrier's number, or how many it is for");
    if (++block->arrived[number] == threads) {
        block->arrived[number] = 0;
        block->turn[number]++;
        return;
    }
    simt_wait_until(turn_passed, &block->turn[number], block->turn[number]);
}
