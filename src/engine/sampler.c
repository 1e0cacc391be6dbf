/* sampler.c: see sampler.h. */
#include "engine/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct ol_sampler {
    ol_pick pick; /* but what changes with each token */
    bool penalised;
    ol_logit_bias *bias;
    ol_seen_token *seen; /* [pick.n_seen] */
    int max_seen;
    int32_t *slots; /* index into seen, or -1: open addressing; 4 * max_seen of them */
    ol_constraint constraint;
    uint32_t *mask; /* NULL: no constraint */
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

ol_code ol_sampler_create(const ol_sampling *how, ol_sampler **sampler, ol_error *err)
{
    size_t bytes = (size_t)how->n_bias * sizeof(ol_logit_bias);
    ol_sampler *s = calloc(1, sizeof(*s));

    if (s && bytes)
        s->bias = malloc(bytes);
    if (!s || (bytes && !s->bias)) {
        free(s);
        return ol_fail_nomem(err, sizeof(*s) + bytes, "a request's sampler");
    }
    if (bytes)
        memcpy(s->bias, how->bias, bytes);
    s->penalised =
        how->repetition_penalty != 1 || how->presence_penalty != 0 || how->frequency_penalty != 0;
    s->pick = (ol_pick){.seed = how->seed,
                        .bias = s->bias,
                        .n_bias = how->n_bias,
                        .given = -1,
                        .temperature = how->temperature,
                        .top_k = how->top_k,
                        .top_p = how->top_p,
                        .floor = how->min_p > 0 ? how->temperature * logf(how->min_p) : -INFINITY,
                        .repetition = how->repetition_penalty,
                        .presence = how->presence_penalty,
                        .frequency = how->frequency_penalty,
                        .logprobs = how->logprobs};
    *sampler = s;
    return OL_OK;
}

ol_code ol_sampler_constrain(ol_sampler *s, const ol_constraint *constraint, int vocab,
                             ol_error *err)
{
    int words = (vocab + 31) / 32;

    s->mask = malloc((size_t)words * sizeof(uint32_t));
    if (!s->mask)
        return ol_fail_nomem(err, (size_t)words * sizeof(uint32_t), "a request's sampler");
    s->constraint = *constraint;
    s->pick.mask = s->mask;
    s->pick.n_mask = words;
    return OL_OK;
}

void ol_sampler_free(ol_sampler *s)
{
    if (!s)
        return;
    free(s->bias);
    free(s->seen);
    free(s->slots);
    free(s->mask);
    free(s);
}

/* -- what was seen ------------------------------------------------------------ */

static int32_t *find_slot(ol_sampler *s, int32_t token)
{
    uint32_t mask = 4 * (uint32_t)s->max_seen - 1;
    uint32_t at = ((uint32_t)token * 2654435761u) & mask;

    while (s->slots[at] >= 0 && s->seen[s->slots[at]].token != token)
        at = (at + 1) & mask;
    return &s->slots[at];
}

static ol_code grow_seen(ol_sampler *s, ol_error *err)
{
    size_t most = s->max_seen ? 2 * (size_t)s->max_seen : 32;
    size_t bytes = most * (sizeof(ol_seen_token) + 4 * sizeof(int32_t));
    ol_seen_token *seen = realloc(s->seen, most * sizeof(*seen));
    int32_t *slots = seen ? malloc(4 * most * sizeof(*slots)) : NULL;

    if (seen)
        s->pick.seen = s->seen = seen;
    if (!slots)
        return ol_fail_nomem(err, bytes, "the penalties of a request");
    free(s->slots);
    s->slots = slots;
    s->max_seen = (int)most;
    for (size_t i = 0; i < 4 * most; i++)
        slots[i] = -1;
    for (int i = 0; i < s->pick.n_seen; i++)
        *find_slot(s, s->seen[i].token) = i;
    return OL_OK;
}

static ol_code see(ol_sampler *s, int32_t token, bool output, ol_error *err)
{
    int32_t *slot;

    if (s->pick.n_seen == s->max_seen)
        OL_TRY(grow_seen(s, err));
    slot = find_slot(s, token);
    if (*slot < 0) {
        *slot = s->pick.n_seen++;
        s->seen[*slot] = (ol_seen_token){.token = token};
    }
    s->seen[*slot].in_output += output;
    return OL_OK;
}

ol_code ol_sampler_see_prompt(ol_sampler *s, const int32_t *tokens, size_t n, ol_error *err)
{
    if (s->pick.repetition == 1) /* the only one that looks at the prompt */
        return OL_OK;
    for (size_t i = 0; i < n; i++)
        OL_TRY(see(s, tokens[i], false, err));
    return OL_OK;
}

ol_code ol_sampler_see_output(ol_sampler *s, int32_t token, ol_error *err)
{
    return s->penalised ? see(s, token, true, err) : OL_OK;
}

/* -- the next token ----------------------------------------------------------- */

void ol_sampler_pick(ol_sampler *s, const int32_t *output, int n_output, ol_pick *pick)
{
    if (s->mask) {
        memset(s->mask, 0, (size_t)s->pick.n_mask * sizeof(uint32_t));
        s->constraint.allow(s->constraint.context, output, n_output, s->mask);
    }
    *pick = s->pick;
    pick->index = n_output;
}
