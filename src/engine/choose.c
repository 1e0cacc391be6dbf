/* choose.c: see choose.h. */
#include "engine/choose.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct candidate {
    float logit;
    int32_t token;
} candidate;

struct ol_chooser {
    int vocab;
    float *logits;
    candidate *candidates;
};

ol_code ol_chooser_create(int vocab, ol_chooser **chooser, ol_error *err)
{
    ol_chooser *c = calloc(1, sizeof(*c));

    if (c) {
        c->vocab = vocab;
        c->logits = malloc((size_t)vocab * sizeof(float));
        c->candidates = malloc((size_t)vocab * sizeof(candidate));
    }
    if (!c || !c->logits || !c->candidates) {
        ol_chooser_free(c);
        return ol_fail_nomem(err, (size_t)vocab * sizeof(candidate), "the sampler");
    }
    *chooser = c;
    return OL_OK;
}

void ol_chooser_free(ol_chooser *c)
{
    if (!c)
        return;
    free(c->logits);
    free(c->candidates);
    free(c);
}

/* -- penalties, biases, masks -------------------------------------------------- */

static void penalise(const ol_pick *how, float *logits, int vocab)
{
    for (int i = 0; i < how->n_seen; i++) {
        const ol_seen_token *t = &how->seen[i];
        float *logit;

        if (t->token < 0 || t->token >= vocab)
            continue;
        logit = &logits[t->token];
        *logit = *logit > 0 ? *logit / how->repetition : *logit * how->repetition;
        if (t->in_output)
            *logit -= how->presence + how->frequency * (float)t->in_output;
    }
}

/* What is no number shows still. */
static void forbid(const ol_pick *how, float *logits, int vocab)
{
    for (int i = 0; i < vocab; i++)
        if (i / 32 >= how->n_mask || !(how->mask[i / 32] >> (i % 32) & 1))
            logits[i] += -INFINITY;
}

/* The row to choose from: the raw one, or a copy with all that. */
static const float *edit(ol_chooser *c, const ol_pick *how, const float *logits)
{
    if (how->n_seen == 0 && how->n_bias == 0 && how->n_mask == 0)
        return logits;
    memcpy(c->logits, logits, (size_t)c->vocab * sizeof(float));
    penalise(how, c->logits, c->vocab);
    for (int i = 0; i < how->n_bias; i++)
        c->logits[how->bias[i].token] += how->bias[i].bias;
    if (how->n_mask > 0)
        forbid(how, c->logits, c->vocab);
    return c->logits;
}

/* -- log-probabilities ------------------------------------------------------- */

/* What every processor has; four at once, since the host chooses between steps, while the device's
 * threads wait. */
typedef float lanes __attribute__((vector_size(16)));
typedef int32_t lane_bits __attribute__((vector_size(16)));

#define LANES 16 /* of four */

/* NaN when any logit is. */
static float max_of(const float *logits, int n)
{
    lanes high[4];
    lane_bits nan = {0};
    float max = -INFINITY;

    for (int v = 0; v < 4; v++)
        high[v] = (lanes){-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    for (int i = 0; i + LANES <= n; i += LANES)
        for (int v = 0; v < 4; v++) {
            lane_bits greater;
            lanes x;

            memcpy(&x, logits + i + 4 * v, sizeof(x));
            greater = x > high[v];
            high[v] = (lanes)(((lane_bits)x & greater) | ((lane_bits)high[v] & ~greater));
            nan |= x != x;
        }
    for (int k = 0; k < LANES; k++) {
        if (nan[k % 4])
            return NAN;
        max = high[k / 4][k % 4] > max ? high[k / 4][k % 4] : max;
    }
    for (int i = n & ~(LANES - 1); i < n; i++) {
        if (isnan(logits[i]))
            return NAN;
        max = logits[i] > max ? logits[i] : max;
    }
    return max;
}

static double log_sum_exp(const float *logits, int n)
{
    float max = max_of(logits, n);
    double sum = 0;

    for (int i = 0; i < n; i++)
        sum += (double)expf(logits[i] - max);
    return (double)max + log(sum);
}

/* The n most likely ones; `lse` is of all. */
static void find_top(const float *logits, int vocab, int n, double lse, ol_token_logprob *top)
{
    int have = 0;

    for (int i = 0; i < vocab && n > 0; i++) {
        int at;

        if (have == n && !(logits[i] > top[n - 1].logprob))
            continue;
        at = have < n ? have++ : n - 1;
        for (; at > 0 && logits[i] > top[at - 1].logprob; at--)
            top[at] = top[at - 1];
        top[at] = (ol_token_logprob){i, logits[i]};
    }
    for (int i = 0; i < have; i++)
        top[i].logprob = (float)((double)top[i].logprob - lse);
}

/* -- the draw ---------------------------------------------------------------- */

/* Uniform in [0, 1), a function of (seed, index): two rounds of the splitmix64
 * finaliser (Steele, Lea, Flood 2014). */
static double uniform(uint64_t seed, int index)
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

static bool better(candidate a, candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

static void sift_down(candidate *heap, int n, int at)
{
    for (;;) {
        int child = 2 * at + 1;
        candidate moved;

        if (child >= n)
            return;
        if (child + 1 < n && better(heap[child + 1], heap[child]))
            child++;
        if (!better(heap[child], heap[at]))
            return;
        moved = heap[at];
        heap[at] = heap[child];
        heap[child] = moved;
        at = child;
    }
}

/* Moves the best of heap[0..n) to heap[n - 1] and restores heap[0..n - 1). */
static candidate pop_best(candidate *heap, int n)
{
    candidate best = heap[0];

    heap[0] = heap[n - 1];
    heap[n - 1] = best;
    sift_down(heap, n - 1, 0);
    return best;
}

/* Draws among candidates[0..n) by cutting to top_k and top_p, best first. Popped
 * candidates gather at the end of the array, so kept[i] = candidates[n - 1 - i]. */
static int32_t draw_cut(const ol_pick *how, candidate *c, int n, float max, double u)
{
    double inverse = 1.0 / (double)how->temperature, total = 0, mass = 0, target;
    int limit = how->top_k > 0 && how->top_k < n ? how->top_k : n;
    int kept = 0;

    for (int i = n / 2 - 1; i >= 0; i--)
        sift_down(c, n, i);
    if (limit == n) {
        for (int i = 0; i < n; i++)
            total += exp((double)(c[i].logit - max) * inverse);
    } else { /* top_p is a share of what top_k leaves */
        for (int i = 0; i < limit; i++)
            total += exp((double)(pop_best(c, n - i).logit - max) * inverse);
        kept = limit;
    }
    for (int i = 0; i < limit; i++) {
        candidate best = i < kept ? c[n - 1 - i] : pop_best(c, n - i);

        mass += exp((double)(best.logit - max) * inverse);
        if (i >= kept)
            kept = i + 1;
        if (mass >= (double)how->top_p * total) {
            kept = i + 1;
            break;
        }
    }
    target = u * mass;
    for (int i = 0; i < kept; i++) {
        target -= exp((double)(c[n - 1 - i].logit - max) * inverse);
        if (target < 0)
            return c[n - 1 - i].token;
    }
    return c[n - kept].token;
}

static int32_t draw_all(const ol_pick *how, const candidate *c, int n, float max, double u)
{
    double inverse = 1.0 / (double)how->temperature, total = 0, target;

    for (int i = 0; i < n; i++)
        total += exp((double)(c[i].logit - max) * inverse);
    target = u * total;
    for (int i = 0; i < n; i++) {
        target -= exp((double)(c[i].logit - max) * inverse);
        if (target < 0)
            return c[i].token;
    }
    return c[n - 1].token;
}

static int32_t draw(ol_chooser *c, const ol_pick *how, const float *logits, float max)
{
    double u = uniform(how->seed, how->index);
    float floor = max + how->floor;
    int n = 0;

    for (int i = 0; i < c->vocab; i++)
        if (logits[i] >= floor && logits[i] != -INFINITY)
            c->candidates[n++] = (candidate){logits[i], i};
    if (how->top_k > 0 || how->top_p < 1)
        return draw_cut(how, c->candidates, n, max, u);
    return draw_all(how, c->candidates, n, max, u);
}

static int32_t first_index_of(const float *logits, int n, float value)
{
    for (int i = 0; i < n; i++)
        if (logits[i] == value)
            return i;
    return -1;
}

static void report(const ol_chooser *c, const ol_pick *how, const float *logits, ol_choice *choice)
{
    double lse = log_sum_exp(logits, c->vocab);

    choice->logprob = (float)((double)logits[choice->token] - lse);
    choice->n_alternatives = how->logprobs < c->vocab ? how->logprobs : c->vocab;
    find_top(logits, c->vocab, choice->n_alternatives, lse, choice->alternatives);
}

void ol_choose(ol_chooser *c, const ol_pick *how, const float *logits, ol_choice *choice)
{
    const float *row = edit(c, how, logits);
    float max = max_of(row, c->vocab);

    *choice = (ol_choice){.status = max == -INFINITY ? OL_CHOICE_NONE_ALLOWED
                                    : max < INFINITY ? OL_CHOICE_MADE
                                                     : OL_CHOICE_NO_NUMBER};
    if (choice->status != OL_CHOICE_MADE)
        return;
    if (how->given >= 0)
        choice->token = how->given;
    else if (how->temperature > 0 && how->top_k != 1)
        choice->token = draw(c, how, row, max);
    else
        choice->token = first_index_of(row, c->vocab, max);
    if (how->logprobs >= 0)
        report(c, how, logits, choice);
}

ol_code ol_choice_check(const ol_choice *choice, ol_error *err)
{
    if (choice->status == OL_CHOICE_MADE)
        return OL_OK;
    if (choice->status == OL_CHOICE_NONE_ALLOWED) {
        ol_fail(err, OL_INVALID, "no token may follow: every one is forbidden");
        return ol_hint(err, "A logit_bias, or what constrains the output, forbids them.");
    }
    ol_fail(err, OL_INTERNAL, "the model gave logits that are not numbers");
    return ol_hint(err, "The weights of the model or of an adapter may be damaged.");
}
