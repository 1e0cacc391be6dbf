/*
 * best.cuh: the candidates of a row of logits in their order, best first, without sorting the
 * vocabulary: a round brings the next ones, at most BEST_MOST, into shared memory and sorts
 * those. Nearly every choice is made among those of the first round.
 *
 * Candidates have keys that are all different: the logit, then the smaller token. A round's
 * are chosen by a histogram of their distances from the best one, in steps of a constant ratio
 * of probabilities. Should more than fit share a step, then by halving the range of keys.
 */
#ifndef OL_KERNELS_BEST_CUH
#define OL_KERNELS_BEST_CUH

#include "kernels/block.cuh"

#define BEST_THREADS 512
#define BEST_MOST (2 * BEST_THREADS) /* of a round: each thread has two */
#define BEST_BINS (2 * BEST_THREADS)
#define BEST_AHEAD 4   /* loads of 16 bytes that a thread has under way */
#define BEST_BINS_E 32 /* bins in which probabilities fall by e */
#define BEST_START 0xffffffffffffffffu

/* visit(logit, token) for all, each by one of the block's threads; `logits` is 16-byte aligned.
 * Loads come in fours, ahead of what the visits do to shared memory: a block has the row for
 * itself, and reads it as fast as it asks. */
template <typename F>
static __device__ __forceinline__ void each_logit(const float *logits, int vocab, F visit)
{
    const float4 *quads = (const float4 *)logits;
    int n = vocab / 4;

    for (int i = (int)threadIdx.x; i < n; i += BEST_AHEAD * BEST_THREADS) {
        float4 quad[BEST_AHEAD];

#pragma unroll
        for (int k = 0; k < BEST_AHEAD; k++)
            quad[k] = quads[min(i + k * BEST_THREADS, n - 1)];
#pragma unroll
        for (int k = 0; k < BEST_AHEAD; k++) {
            int at = 4 * (i + k * BEST_THREADS);

            if (at >= 4 * n)
                break;
            visit(quad[k].x, at);
            visit(quad[k].y, at + 1);
            visit(quad[k].z, at + 2);
            visit(quad[k].w, at + 3);
        }
    }
    for (int i = 4 * n + (int)threadIdx.x; i < vocab; i += BEST_THREADS)
        visit(logits[i], i);
}

struct best_shared {
    uint64_t keys[BEST_MOST];
    double sums[BEST_MOST]; /* of weights, up to and with this one */
    unsigned bins[BEST_BINS];
    block_room room;
    uint64_t below; /* the round is the best ones below this key; 0: none is there */
    unsigned n, bin, found;
};

/* A row, and which of its tokens are candidates. */
struct best_row {
    const float *logits;
    int vocab;
    float max;      /* of the logits */
    float floor;    /* of candidates */
    bool all;       /* even -INFINITY is one */
    double inverse; /* of the temperature */
};

static __device__ uint64_t key_of(float logit, int token)
{
    uint32_t bits = __float_as_uint(logit + 0.0f); /* one zero */

    bits = logit != logit ? 0xffffffffu : bits >> 31 ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | ~(uint32_t)token;
}

static __device__ int token_of(uint64_t key)
{
    return (int)~(uint32_t)key;
}

static __device__ float logit_of(uint64_t key)
{
    uint32_t bits = (uint32_t)(key >> 32);

    return __uint_as_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

static __device__ bool is_candidate(const best_row &row, float logit)
{
    return row.all || (logit >= row.floor && logit != -INFINITY);
}

static __device__ double weight_of(const best_row &row, float logit)
{
    return exp((double)(logit - row.max) * row.inverse);
}

static __device__ unsigned bin_of(const best_row &row, float logit)
{
    float distance = (row.max - logit) * ((float)row.inverse * BEST_BINS_E);

    return (unsigned)fminf(distance, BEST_BINS - 1);
}

/* -- which ones: s->bin and the key that is returned are the last of the round ----------------- */

/* The first bin at which there are `want`, but none with which there are more than fit;
 * BEST_BINS if already the first ones are too many. */
static __device__ void find_bin(best_shared *s, unsigned want)
{
    unsigned two[2] = {s->bins[2 * threadIdx.x], s->bins[2 * threadIdx.x + 1]};
    unsigned before = block_sum_before(two[0] + two[1], &s->room);

    if (threadIdx.x == 0)
        s->bin = BEST_BINS - 1;
    __syncthreads();
    for (unsigned i = 0; i < 2; i++) {
        unsigned after = before + two[i];

        if (before < want && after >= want) {
            s->bin = 2 * threadIdx.x + i;
            if (after > BEST_MOST)
                s->bin = before ? s->bin - 1 : BEST_BINS;
        }
        before = after;
    }
    __syncthreads();
}

/* The lowest key of the best ones below `below` of which there are some, and not too many. */
static __device__ uint64_t find_key(const best_row &row, best_shared *s, uint64_t below)
{
    uint64_t lowest = 0;

    for (int bit = 63; bit >= 0; bit--) {
        uint64_t middle = lowest | (uint64_t)1 << bit;
        unsigned n = 0;

        each_logit(row.logits, row.vocab, [&](float logit, int token) {
            uint64_t key = key_of(logit, token);

            n += is_candidate(row, logit) && key < below && key >= middle;
        });
        n = block_sum(n, &s->room);
        if (n > 0)
            lowest = middle;
        if (n > 0 && n <= BEST_MOST)
            break;
    }
    return lowest;
}

static __device__ void count_bins(const best_row &row, best_shared *s, uint64_t below)
{
    for (int i = (int)threadIdx.x; i < BEST_BINS; i += BEST_THREADS)
        s->bins[i] = 0;
    __syncthreads();
    each_logit(row.logits, row.vocab, [&](float logit, int token) {
        if (is_candidate(row, logit) && key_of(logit, token) < below)
            atomicAdd(&s->bins[bin_of(row, logit)], 1u);
    });
    __syncthreads();
}

/* -- a round --------------------------------------------------------------------------------------
 * Candidates below a key, the best of them, in order and with the sums of their weights. */

static __device__ void collect(const best_row &row, best_shared *s, uint64_t below, uint64_t lowest)
{
    if (threadIdx.x == 0)
        s->n = 0;
    __syncthreads();
    each_logit(row.logits, row.vocab, [&](float logit, int token) {
        uint64_t key = key_of(logit, token);

        if (is_candidate(row, logit) && key < below && key >= lowest &&
            bin_of(row, logit) <= s->bin)
            s->keys[atomicAdd(&s->n, 1u)] = key;
    });
    __syncthreads();
}

/* Descending; bitonic: halves of a power of two are merged in all sizes. */
static __device__ void sort_keys(best_shared *s)
{
    int n = 2;

    while (n < (int)s->n)
        n *= 2;
    for (int i = (int)threadIdx.x; i < n; i += BEST_THREADS)
        if (i >= (int)s->n)
            s->keys[i] = 0;
    __syncthreads();
    for (int size = 2; size <= n; size *= 2)
        for (int step = size / 2; step > 0; step /= 2) {
            int i = 2 * (int)threadIdx.x - ((int)threadIdx.x & (step - 1));

            if (i + step < n) {
                uint64_t a = s->keys[i], b = s->keys[i + step];

                if ((a < b) == ((i & size) == 0)) {
                    s->keys[i] = b;
                    s->keys[i + step] = a;
                }
            }
            __syncthreads();
        }
}

static __device__ void sum_weights(const best_row &row, best_shared *s)
{
    int i = 2 * (int)threadIdx.x, n = (int)s->n;
    double first = i < n ? weight_of(row, logit_of(s->keys[i])) : 0;
    double second = i + 1 < n ? weight_of(row, logit_of(s->keys[i + 1])) : 0;
    double before = block_sum_before(first + second, &s->room);

    s->sums[i] = before + first;
    s->sums[i + 1] = before + (first + second);
    __syncthreads();
}

/* Brings about the best `want` candidates (BEST_MOST at most) below a key: fewer if there are
 * not as many, or if more would not fit; but one if there is one. */
static __device__ void best_round(const best_row &row, best_shared *s, uint64_t below, int want)
{
    uint64_t lowest = 0;

    if (s->below == below)
        return;
    count_bins(row, s, below);
    find_bin(s, (unsigned)want);
    if (s->bin == BEST_BINS)
        lowest = find_key(row, s, below);
    collect(row, s, below, lowest);
    if (threadIdx.x == 0)
        s->below = below;
    sort_keys(s);
    sum_weights(row, s);
}

/* -- in order -------------------------------------------------------------------------------------
 * As many rounds as it takes. */

struct best_end {
    double mass; /* of the candidates up to and with the last */
    int count;
    int token; /* the last */
};

/* Goes through the candidates until their mass is at least `stop` (more than it, if `strictly`),
 * or there are `limit` of them; as many there must be. */
static __device__ best_end best_walk(const best_row &row, best_shared *s, double stop,
                                     bool strictly, int limit)
{
    uint64_t below = BEST_START;
    double mass = 0;
    int count = 0;

    for (;;) {
        int n, first = BEST_MOST;

        best_round(row, s, below, min(limit - count, BEST_MOST));
        n = min((int)s->n, limit - count);
        for (int i = 2 * (int)threadIdx.x + 1; i >= 2 * (int)threadIdx.x; i--)
            if (i < n && (strictly ? mass + s->sums[i] > stop : mass + s->sums[i] >= stop))
                first = i;
        first = block_min(first, &s->room);
        if (first < n || count + n >= limit || n == 0) {
            int last = max(min(first, n - 1), 0);

            return {mass + s->sums[last], count + last + 1, token_of(s->keys[last])};
        }
        mass += s->sums[n - 1];
        count += n;
        below = s->keys[n - 1];
    }
}

#endif
