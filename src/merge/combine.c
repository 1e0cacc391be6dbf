/* combine.c: see merge_internal.h. */
#include "merge/merge_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* -- pruning -------------------------------------------------------------------------- */

/* Floats that are not negative have the order of their bits. */
static uint32_t size_of(float v)
{
    uint32_t bits;

    v = fabsf(v);
    memcpy(&bits, &v, sizeof(bits));
    return bits;
}

#define HALF ((size_t)1 << 16)

/* Going down from the largest of counts, where the sum reaches *keep, which becomes what is
 * left of it there. */
static uint32_t descend(const size_t *counts, size_t *keep)
{
    uint32_t at = HALF - 1;

    while (counts[at] < *keep)
        *keep -= counts[at--];
    return at;
}

/* The size of the keep-th largest, by counting upper halves, then lower ones of those. *keep
 * becomes how many of that size are among the largest. */
static ol_code find_limit(const float *in, size_t count, size_t *keep, uint32_t *limit,
                          ol_error *err)
{
    size_t *counts = calloc(2 * HALF, sizeof(*counts));
    uint32_t upper;

    if (!counts)
        return ol_fail_nomem(err, 2 * HALF * sizeof(*counts), "values to prune");
    for (size_t i = 0; i < count; i++)
        counts[size_of(in[i]) >> 16]++;
    upper = descend(counts, keep);
    for (size_t i = 0; i < count; i++)
        if (size_of(in[i]) >> 16 == upper)
            counts[HALF + (size_of(in[i]) & (HALF - 1))]++;
    *limit = upper << 16 | descend(counts + HALF, keep);
    free(counts);
    return OL_OK;
}

/* Keeps the largest part by magnitude: as many as PEFT's topk, the first of equals. */
static ol_code prune_small(const float *in, size_t count, double density, float *out, ol_error *err)
{
    size_t keep = (size_t)(density * (double)count);
    uint32_t limit = 0;

    memset(out, 0, count * sizeof(*out));
    if (keep == 0)
        return OL_OK;
    OL_TRY(find_limit(in, count, &keep, &limit, err));
    for (size_t i = 0; i < count; i++) {
        uint32_t size = size_of(in[i]);

        if (size > limit || (size == limit && keep > 0 && keep--))
            out[i] = in[i];
    }
    return OL_OK;
}

/* SplitMix64 of a counter: a number depends on seed, tensor, parent and place alone. */
static double random_at(uint64_t seed, uint64_t key, uint64_t at)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15u * (key * 0x100000001b3u + at + 1);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (double)(z >> 11) * 0x1p-53;
}

static void prune_random(const float *in, size_t count, double density, uint64_t seed, uint64_t key,
                         float *out)
{
    for (size_t i = 0; i < count; i++)
        out[i] = random_at(seed, key, i) < density ? (float)(in[i] / density) : 0.0f;
}

static ol_code prune(const combination *c, int parent, float *out, ol_error *err)
{
    const ol_merge_options *o = c->options;

    if (o->method->prune == OL_PRUNE_NONE || o->density >= 1)
        memcpy(out, c->values[parent], c->count * sizeof(*out));
    else if (o->method->prune == OL_PRUNE_MAGNITUDE)
        return prune_small(c->values[parent], c->count, o->density, out, err);
    else
        prune_random(c->values[parent], c->count, o->density, o->seed,
                     c->key * OL_MERGE_MAX_PARENTS + (uint64_t)parent, out);
    return OL_OK;
}

/* -- combining ------------------------------------------------------------------------ */

static int sign_of(float v)
{
    return (v > 0) - (v < 0);
}

/* The mean of those, weighted, whose sign most have: by their sum, or by their number. */
static float elect(const combination *c, const float *pruned, size_t at)
{
    double total = 0, sum = 0;
    int majority, agreed = 0;

    for (int p = 0; p < c->n; p++) {
        float v = pruned[(size_t)p * c->count + at];

        total += c->options->sign_by_count ? sign_of(v) : v;
    }
    majority = total >= 0 ? 1 : -1;
    for (int p = 0; p < c->n; p++) {
        float v = pruned[(size_t)p * c->count + at];

        if (sign_of(v) == majority) {
            sum += (double)v * c->weights[p];
            agreed++;
        }
    }
    return (float)(agreed ? sum / agreed : 0);
}

static float add_up(const combination *c, const float *pruned, size_t at)
{
    double sum = 0;

    for (int p = 0; p < c->n; p++)
        sum += (double)pruned[(size_t)p * c->count + at] * c->weights[p];
    return (float)sum;
}

ol_code merge_combine(const combination *c, float *out, ol_error *err)
{
    size_t bytes;
    float *pruned;
    ol_code code = OL_OK;

    if (__builtin_mul_overflow(c->count, (size_t)c->n * sizeof(float), &bytes))
        return ol_fail(err, OL_LIMIT, "the adapters are too large to merge");
    pruned = malloc(bytes ? bytes : 1);
    if (!pruned)
        return ol_fail_nomem(err, bytes, "values to merge");
    for (int p = 0; p < c->n && code == OL_OK; p++)
        code = prune(c, p, pruned + (size_t)p * c->count, err);
    for (size_t i = 0; i < c->count && code == OL_OK; i++)
        out[i] = c->options->method->ties ? elect(c, pruned, i) : add_up(c, pruned, i);
    free(pruned);
    return code;
}
