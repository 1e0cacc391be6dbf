/*
 * sample.cu: from rows of logits to tokens. See base/choice.h for the steps and their order;
 * src/engine/choose.c does the same, and tests compare the two. A block has a row.
 */
#include "kernels/best.cuh"
#include "kernels/launch.h"

#define WARPS (BEST_THREADS / WARP)

/* -- penalties, biases, masks ---------------------------------------------------------------------
 * On a copy of the row: the logits stay for what is told of them. */

static __device__ void penalise(const gpu_sample &op, const ol_pick &how, float *logits)
{
    for (int i = (int)threadIdx.x; i < how.n_seen; i += BEST_THREADS) {
        ol_seen_token seen = how.seen[i];
        float x;

        if (seen.token < 0 || seen.token >= op.vocab)
            continue;
        x = logits[seen.token];
        x = x > 0 ? x / how.repetition : __fmul_rn(x, how.repetition);
        if (seen.in_output)
            x -= __fadd_rn(how.presence, __fmul_rn(how.frequency, (float)seen.in_output));
        logits[seen.token] = x;
    }
}

/* A token may be named more than once: its first entry adds all, in their order. */
static __device__ void add_biases(const ol_pick &how, float *logits)
{
    const ol_logit_bias *bias = how.bias;

    for (int i = (int)threadIdx.x; i < how.n_bias; i += BEST_THREADS) {
        int token = bias[i].token;
        bool first = true;

        for (int j = 0; j < i; j++)
            first = first && bias[j].token != token;
        for (int j = i; first && j < how.n_bias; j++)
            if (bias[j].token == token)
                logits[token] += bias[j].bias;
    }
}

/* The row to choose from: the raw one, or a copy with all that. */
static __device__ const float *edit(const gpu_sample &op, const ol_pick &how)
{
    const float *raw = op.logits + blockIdx.x * op.ld;
    float *to = op.edited + blockIdx.x * op.ld;

    if (how.n_seen == 0 && how.n_bias == 0 && how.n_mask == 0)
        return raw;
    each_logit(raw, op.vocab, [&](float logit, int token) { to[token] = logit; });
    __syncthreads();
    penalise(op, how, to);
    __syncthreads();
    add_biases(how, to);
    __syncthreads();
    if (how.n_mask > 0)
        for (int i = (int)threadIdx.x; i < op.vocab; i += BEST_THREADS)
            if (i / 32 >= how.n_mask || !(how.mask[i / 32] >> (i % 32) & 1))
                to[i] += -INFINITY; /* what is no number shows still */
    __syncthreads();
    return to;
}

/* -- the draw -------------------------------------------------------------------------------------
 * From the candidates, best first, where the random number falls in the sum of their weights. */

/* In [0, 1): as the engine's. */
static __device__ double uniform(uint64_t seed, int index)
{
    uint64_t z = seed;

    for (int round = 0; round < 2; round++) {
        z += 0x9E3779B97F4A7C15u * ((uint64_t)index + 1 + (uint64_t)round);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        z ^= z >> 31;
    }
    return (double)(z >> 11) * 0x1p-53;
}

/* Candidates among all, and their weights' sum. */
static __device__ double count_candidates(const best_row &row, best_shared *s, int *n)
{
    double sum = 0;
    int mine = 0;

    each_logit(row.logits, row.vocab, [&](float logit, int) {
        if (is_candidate(row, logit)) {
            sum += weight_of(row, logit);
            mine++;
        }
    });
    *n = block_sum(mine, &s->room);
    return block_sum(sum, &s->room);
}

static __device__ int draw_cut(const best_row &row, best_shared *s, const ol_pick &how, double u)
{
    int n, limit;
    double total = count_candidates(row, s, &n);
    best_end end;

    limit = how.top_k > 0 && how.top_k < n ? how.top_k : n;
    if (limit < n) /* top_p is a share of what top_k leaves */
        total = best_walk(row, s, INFINITY, false, limit).mass;
    end = best_walk(row, s, (double)how.top_p * total, false, limit);
    return best_walk(row, s, u * end.mass, true, end.count).token;
}

/* Weights of `step` tokens each, a warp's: from token `from` + warp * step on. */
static __device__ const double *segment_sums(const best_row &row, best_shared *s, int from, int to,
                                             int step)
{
    int first = from + (int)threadIdx.x / WARP * step, last = min(first + step, to);
    double sum = 0;

    for (int i = first + block_lane(); i < last; i += WARP)
        if (is_candidate(row, row.logits[i]))
            sum += weight_of(row, row.logits[i]);
    for (int half = WARP / 2; half > 0; half /= 2)
        sum += __shfl_xor_sync(FULL_MASK, sum, half);
    return block_share(sum, &s->room, 0);
}

/* The warp's segment in which the target is. Rounding may leave none: then the last with any
 * weight. *before: what is in those before it. */
static __device__ int find_segment(const double *sums, double target, double *before)
{
    int segment = 0;
    double sum = 0;

    *before = 0;
    for (int i = 0; i < WARPS && !(sum > target); i++)
        if (sums[i] > 0) {
            segment = i;
            *before = sum;
            sum += sums[i];
        }
    return segment;
}

/* In the order of tokens: which warp's segment has the target, then which part of that. */
static __device__ int draw_all(const best_row &row, best_shared *s, double u)
{
    int from = 0, to = row.vocab, token = 0;
    double total = 0, target = 0, before;

    for (int step = row.vocab, level = 0; step > WARP || level == 0; level++) {
        const double *sums;

        step = ((step + WARPS - 1) / WARPS + WARP - 1) / WARP * WARP;
        sums = segment_sums(row, s, from, to, step);
        for (int i = 0; i < WARPS; i++)
            total += sums[i];
        target = level == 0 ? u * total : target;
        from += find_segment(sums, target, &before) * step;
        to = min(from + step, to);
        target -= before;
    }
    for (int i = from; i < to; i++) {
        if (!is_candidate(row, row.logits[i]))
            continue;
        token = i;
        target -= weight_of(row, row.logits[i]);
        if (target < 0)
            break;
    }
    return token;
}

/* -- log-probabilities ----------------------------------------------------------------------------
 * Of the logits as the model gave them. */

static __device__ void report(best_row row, best_shared *s, const ol_pick &how, ol_choice *choice,
                              int token)
{
    uint64_t best = 0;
    double sum = 0, total;
    int n = min(min(how.logprobs, OL_MAX_LOGPROBS), row.vocab);

    each_logit(row.logits, row.vocab,
               [&](float logit, int token) { best = max(best, key_of(logit, token)); });
    row.max = logit_of(block_max(best, &s->room));
    each_logit(row.logits, row.vocab,
               [&](float logit, int) { sum += (double)expf(logit - row.max); });
    total = (double)row.max + log(block_sum(sum, &s->room));
    if (n > 0) {
        if (threadIdx.x == 0)
            s->below = 0; /* of other logits */
        __syncthreads();
        best_round(row, s, BEST_START, n);
    }
    if ((int)threadIdx.x < n) {
        uint64_t key = s->keys[threadIdx.x];

        choice->alternatives[threadIdx.x] = {token_of(key), (float)((double)logit_of(key) - total)};
    }
    if (threadIdx.x == 0) {
        choice->n_alternatives = n;
        choice->logprob = (float)((double)row.logits[token] - total);
    }
}

/* -- a row ----------------------------------------------------------------------------------------
 * Its best token comes first: whether there is one to choose, and what weights are
 * measured against. */

static __global__ void __launch_bounds__(BEST_THREADS, 1)
    sample_kernel(gpu_rows rows, gpu_sample op)
{
    GPU_SHARED(shared);
    best_shared *s = (best_shared *)shared;
    ol_choice *choice = op.choices + blockIdx.x;
    uint64_t best = 0;
    const ol_pick &how = op.picks[blockIdx.x];
    best_row row;
    int token;

    if ((int)blockIdx.x >= rows.counts->n_logit_rows)
        return;
    row = {edit(op, how), op.vocab, 0, -INFINITY, false, 1};
    each_logit(row.logits, op.vocab,
               [&](float logit, int token) { best = max(best, key_of(logit, token)); });
    best = block_max(best, &s->room);
    row.max = logit_of(best);
    token = token_of(best);
    if (threadIdx.x == 0) {
        s->below = 0;
        choice->status = row.max == -INFINITY ? OL_CHOICE_NONE_ALLOWED
                         : row.max < INFINITY ? OL_CHOICE_MADE
                                              : OL_CHOICE_NO_NUMBER;
    }
    __syncthreads();
    if (!(row.max > -INFINITY && row.max < INFINITY))
        return;
    if (how.given >= 0)
        token = how.given;
    else if (how.temperature > 0 && how.top_k != 1) {
        double u = uniform(how.seed, how.index);

        row.inverse = 1.0 / (double)how.temperature;
        row.floor = __fadd_rn(row.max, how.floor);
        token = how.top_k > 0 || how.top_p < 1 ? draw_cut(row, s, how, u) : draw_all(row, s, u);
    }
    if (threadIdx.x == 0) {
        choice->token = token;
        choice->logprob = 0;
        choice->n_alternatives = 0;
    }
    if (how.logprobs >= 0)
        report({op.logits + blockIdx.x * op.ld, op.vocab, 0, 0, true, 1}, s, how, choice, token);
}

extern "C" cudaError_t gpu_sample_run(const gpu_rows *rows, const gpu_sample *op, int n_rows,
                                      cudaStream_t stream)
{
    if (n_rows <= 0)
        return cudaSuccess;
    return gpu_launch(sample_kernel, dim3((unsigned)n_rows), dim3(BEST_THREADS),
                      sizeof(best_shared), stream, *rows, *op);
}
