/* sampler.c: see sampler.h. */
#include "engine/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* How often a token was seen; open addressing, empty slots hold token -1. */
typedef struct seen {
    int32_t token;
    int32_t in_output;
    bool in_prompt;
} seen;

struct ol_sampler {
    ol_sampling how; /* its bias is our copy; stops are not ours */
    ol_logit_bias *bias;
    int vocab;
    bool penalised;
    seen *table;
    size_t table_size; /* a power of two, or 0 */
    size_t table_used;
};

typedef struct candidate {
    float logit;
    int32_t token;
} candidate;

struct ol_sampler_scratch {
    float *logits;
    candidate *candidates;
};

ol_sampling ol_sampling_default(void)
{
    return (ol_sampling){.top_p = 1, .repetition_penalty = 1, .logprobs = -1};
}

/* -- checks ------------------------------------------------------------------ */

static ol_code check_range(const char *name, float value, float low, float high, ol_error *err)
{
    if (value >= low && value <= high) /* false for NaN */
        return OL_OK;
    ol_fail(err, OL_INVALID, "%s is out of range: %g", name, (double)value);
    return ol_detail(err, "It must be from %g to %g.", (double)low, (double)high);
}

static ol_code check_count(const char *name, int value, int low, int high, ol_error *err)
{
    if (value >= low && value <= high)
        return OL_OK;
    ol_fail(err, OL_INVALID, "%s is out of range: %d", name, value);
    return ol_detail(err, "It must be from %d to %d.", low, high);
}

static ol_code check_bias(const ol_sampling *s, int vocab, ol_error *err)
{
    OL_TRY(check_count("number of logit biases", s->n_bias, 0, OL_MAX_LOGIT_BIAS, err));
    for (int i = 0; i < s->n_bias; i++) {
        if (s->bias[i].token < 0 || s->bias[i].token >= vocab) {
            ol_fail(err, OL_INVALID, "logit_bias names token %d, which the model does not have",
                    s->bias[i].token);
            return ol_detail(err, "Token ids run from 0 to %d.", vocab - 1);
        }
        if (isnan(s->bias[i].bias) || s->bias[i].bias == INFINITY)
            return ol_fail(err, OL_INVALID, "logit_bias of token %d is not a finite number",
                           s->bias[i].token);
    }
    return OL_OK;
}

static ol_code check_stops(const ol_sampling *s, ol_error *err)
{
    OL_TRY(check_count("number of stop strings", s->n_stops, 0, OL_MAX_STOPS, err));
    for (int i = 0; i < s->n_stops; i++)
        if (s->stops[i].len == 0 || s->stops[i].len > OL_MAX_STOP_BYTES) {
            ol_fail(err, OL_INVALID, "stop string %d is %s", i + 1,
                    s->stops[i].len ? "too long" : "empty");
            return ol_detail(err, "A stop string has 1 to %d bytes.", OL_MAX_STOP_BYTES);
        }
    return OL_OK;
}

ol_code ol_sampling_check(const ol_sampling *s, int vocab, ol_error *err)
{
    OL_TRY(check_range("temperature", s->temperature, 0, 100, err));
    OL_TRY(check_count("top_k", s->top_k, 0, INT32_MAX, err));
    OL_TRY(check_range("top_p", s->top_p, 0, 1, err));
    OL_TRY(check_range("min_p", s->min_p, 0, 1, err));
    OL_TRY(check_range("repetition_penalty", s->repetition_penalty, 1e-3f, 1e3f, err));
    OL_TRY(check_range("presence_penalty", s->presence_penalty, -100, 100, err));
    OL_TRY(check_range("frequency_penalty", s->frequency_penalty, -100, 100, err));
    OL_TRY(check_count("max_tokens", s->max_tokens, 0, INT32_MAX, err));
    OL_TRY(check_count("logprobs", s->logprobs, -1, OL_MAX_LOGPROBS, err));
    OL_TRY(check_bias(s, vocab, err));
    return check_stops(s, err);
}

/* -- life -------------------------------------------------------------------- */

ol_code ol_sampler_scratch_create(int vocab, ol_sampler_scratch **scratch, ol_error *err)
{
    ol_sampler_scratch *s = calloc(1, sizeof(*s));

    if (s) {
        s->logits = malloc((size_t)vocab * sizeof(float));
        s->candidates = malloc((size_t)vocab * sizeof(candidate));
    }
    if (!s || !s->logits || !s->candidates) {
        ol_sampler_scratch_free(s);
        return ol_fail_nomem(err, (size_t)vocab * sizeof(candidate), "the sampler");
    }
    *scratch = s;
    return OL_OK;
}

void ol_sampler_scratch_free(ol_sampler_scratch *s)
{
    if (!s)
        return;
    free(s->logits);
    free(s->candidates);
    free(s);
}

ol_code ol_sampler_create(const ol_sampling *sampling, int vocab, ol_sampler **sampler,
                          ol_error *err)
{
    size_t bytes = (size_t)sampling->n_bias * sizeof(ol_logit_bias);
    ol_sampler *s = calloc(1, sizeof(*s));

    if (s && bytes)
        s->bias = malloc(bytes);
    if (!s || (bytes && !s->bias)) {
        free(s);
        return ol_fail_nomem(err, sizeof(*s) + bytes, "a request's sampler");
    }
    if (bytes)
        memcpy(s->bias, sampling->bias, bytes);
    s->how = *sampling;
    s->how.bias = s->bias;
    s->how.stops = NULL;
    s->how.n_stops = 0;
    s->vocab = vocab;
    s->penalised = sampling->repetition_penalty != 1 || sampling->presence_penalty != 0 ||
                   sampling->frequency_penalty != 0;
    *sampler = s;
    return OL_OK;
}

void ol_sampler_free(ol_sampler *s)
{
    if (!s)
        return;
    free(s->bias);
    free(s->table);
    free(s);
}

/* -- penalties --------------------------------------------------------------- */

static seen *find_slot(seen *table, size_t size, int32_t token)
{
    size_t at = ((uint32_t)token * 2654435761u) & (size - 1);

    while (table[at].token != -1 && table[at].token != token)
        at = (at + 1) & (size - 1);
    return &table[at];
}

static ol_code grow_table(ol_sampler *s, ol_error *err)
{
    size_t size = s->table_size ? 2 * s->table_size : 64;
    seen *table = malloc(size * sizeof(seen));

    if (!table)
        return ol_fail_nomem(err, size * sizeof(seen), "the penalties of a request");
    for (size_t i = 0; i < size; i++)
        table[i] = (seen){.token = -1};
    for (size_t i = 0; i < s->table_size; i++)
        if (s->table[i].token != -1)
            *find_slot(table, size, s->table[i].token) = s->table[i];
    free(s->table);
    s->table = table;
    s->table_size = size;
    return OL_OK;
}

static ol_code see(ol_sampler *s, int32_t token, bool output, ol_error *err)
{
    seen *slot;

    if (2 * (s->table_used + 1) > s->table_size)
        OL_TRY(grow_table(s, err));
    slot = find_slot(s->table, s->table_size, token);
    if (slot->token == -1) {
        slot->token = token;
        s->table_used++;
    }
    if (output)
        slot->in_output++;
    else
        slot->in_prompt = true;
    return OL_OK;
}

ol_code ol_sampler_see_prompt(ol_sampler *s, const int32_t *tokens, size_t n, ol_error *err)
{
    if (s->how.repetition_penalty == 1) /* the only one that looks at the prompt */
        return OL_OK;
    for (size_t i = 0; i < n; i++)
        OL_TRY(see(s, tokens[i], false, err));
    return OL_OK;
}

ol_code ol_sampler_see_output(ol_sampler *s, int32_t token, ol_error *err)
{
    return s->penalised ? see(s, token, true, err) : OL_OK;
}

static void apply_penalties(const ol_sampler *s, float *logits)
{
    for (size_t i = 0; i < s->table_size; i++) {
        const seen *t = &s->table[i];
        float *logit;

        if (t->token < 0 || t->token >= s->vocab)
            continue;
        logit = &logits[t->token];
        *logit =
            *logit > 0 ? *logit / s->how.repetition_penalty : *logit * s->how.repetition_penalty;
        if (t->in_output)
            *logit -= s->how.presence_penalty + s->how.frequency_penalty * (float)t->in_output;
    }
}

/* -- log-probabilities ------------------------------------------------------- */

/* NaN when any logit is. Lanes keep the loop free of a serial dependency. */
static float max_of(const float *logits, int n)
{
    enum { LANES = 16 };
    float lane[LANES], max = -INFINITY;
    int nans[LANES] = {0};

    for (int k = 0; k < LANES; k++)
        lane[k] = -INFINITY;
    for (int i = 0; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            float x = logits[i + k];

            lane[k] = x > lane[k] ? x : lane[k];
            nans[k] |= x != x;
        }
    for (int i = n & ~(LANES - 1); i < n; i++) {
        lane[0] = logits[i] > lane[0] ? logits[i] : lane[0];
        nans[0] |= isnan(logits[i]);
    }
    for (int k = 0; k < LANES; k++) {
        if (nans[k])
            return NAN;
        max = lane[k] > max ? lane[k] : max;
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

float ol_logprob_of(const float *logits, int vocab, int32_t token)
{
    return (float)((double)logits[token] - log_sum_exp(logits, vocab));
}

static void top_with(const float *logits, int vocab, int n, double lse, ol_token_logprob *top)
{
    int have = 0;

    n = n < vocab ? n : vocab;
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

void ol_logprob_top(const float *logits, int vocab, int n, ol_token_logprob *top)
{
    top_with(logits, vocab, n, log_sum_exp(logits, vocab), top);
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
static int32_t draw_cut(const ol_sampling *how, candidate *c, int n, float max, double u)
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

static int32_t draw_all(const ol_sampling *how, const candidate *c, int n, float max, double u)
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

static int32_t draw(const ol_sampler *s, ol_sampler_scratch *scratch, const float *logits,
                    float max, int index)
{
    const ol_sampling *how = &s->how;
    double u = uniform(how->seed, index);
    float floor = how->min_p > 0 ? max + how->temperature * logf(how->min_p) : -INFINITY;
    int n = 0;

    for (int i = 0; i < s->vocab; i++)
        if (logits[i] >= floor && logits[i] != -INFINITY)
            scratch->candidates[n++] = (candidate){logits[i], i};
    if (how->top_k > 0 || how->top_p < 1)
        return draw_cut(how, scratch->candidates, n, max, u);
    return draw_all(how, scratch->candidates, n, max, u);
}

static int32_t first_index_of(const float *logits, int n, float value)
{
    for (int i = 0; i < n; i++)
        if (logits[i] == value)
            return i;
    return -1;
}

ol_code ol_sampler_choose(ol_sampler *s, ol_sampler_scratch *scratch, const float *logits,
                          int index, ol_choice *choice, ol_error *err)
{
    const float *row = logits;
    float max;

    choice->n_alternatives = 0;
    choice->logprob = 0;
    if (s->penalised || s->how.n_bias) {
        memcpy(scratch->logits, logits, (size_t)s->vocab * sizeof(float));
        apply_penalties(s, scratch->logits);
        for (int i = 0; i < s->how.n_bias; i++)
            scratch->logits[s->bias[i].token] += s->bias[i].bias;
        row = scratch->logits;
    }
    max = max_of(row, s->vocab);
    if (max == -INFINITY)
        return ol_fail(err, OL_INVALID, "logit_bias forbids every token");
    if (isnan(max) || max == INFINITY) {
        ol_fail(err, OL_INTERNAL, "the model gave logits that are not numbers");
        return ol_hint(err, "The weights of the model or of an adapter may be damaged.");
    }
    choice->token = first_index_of(row, s->vocab, max);
    if (s->how.temperature > 0 && s->how.top_k != 1)
        choice->token = draw(s, scratch, row, max, index);
    if (s->how.logprobs >= 0) {
        double lse = log_sum_exp(logits, s->vocab);

        choice->logprob = (float)((double)logits[choice->token] - lse);
        choice->n_alternatives = s->how.logprobs < s->vocab ? s->how.logprobs : s->vocab;
        top_with(logits, s->vocab, choice->n_alternatives, lse, choice->alternatives);
    }
    return OL_OK;
}
