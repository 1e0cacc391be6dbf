/*
 * choice.h: how the token of a row of logits is chosen, and what came of it. Plain data that the
 * engine, devices and kernels share; pointers are to the memory of whoever computes.
 *
 * The steps and their order: repetition, presence and frequency penalties; biases; the mask;
 * temperature; min_p; top_k; top_p over what is left; then one draw, by a number that depends on
 * (seed, index) alone. Reported log-probabilities are those of the raw logits.
 */
#ifndef OL_BASE_CHOICE_H
#define OL_BASE_CHOICE_H

#include <stdint.h>

#define OL_MAX_LOGPROBS 20 /* alternatives per token */

/* A token that was there before; named once. */
typedef struct ol_seen_token {
    int32_t token;
    int32_t in_output; /* how often; 0: in the prompt alone */
} ol_seen_token;

typedef struct ol_logit_bias {
    int32_t token;
    float bias; /* added to the logit; -INFINITY forbids the token */
} ol_logit_bias;

typedef struct ol_token_logprob {
    int32_t token;
    float logprob; /* natural log, of the model's own distribution: before
                    * temperature, penalties, bias and cuts */
} ol_token_logprob;

typedef struct ol_pick {
    uint64_t seed;
    const ol_seen_token *seen; /* [n_seen]: what penalties apply to; none: 0 */
    const ol_logit_bias *bias; /* [n_bias]: a token may be named more than once */
    const uint32_t *mask;      /* [n_mask]: token t is allowed when bit t % 32 of word t / 32 is
                                * set; no words: every token is */
    int32_t n_seen, n_bias, n_mask;
    int32_t index;     /* of the output token, from 0 */
    int32_t given;     /* the token that it has to be: nothing is chosen; -1: none */
    float temperature; /* 0: the best one, of equal ones the lowest id */
    int32_t top_k;     /* 0: off */
    float top_p;       /* 1: off */
    float floor;       /* min_p: temperature * logf(min_p), under the best logit; -INFINITY: off */
    float repetition, presence, frequency;
    int32_t logprobs; /* -1: none; k: the token's, and the k best (<= OL_MAX_LOGPROBS) */
} ol_pick;

typedef enum ol_choice_status {
    OL_CHOICE_MADE,
    OL_CHOICE_NONE_ALLOWED, /* every logit is -INFINITY */
    OL_CHOICE_NO_NUMBER,    /* a logit is NaN, or infinite */
} ol_choice_status;

typedef struct ol_choice {
    int32_t status; /* ol_choice_status: unless a choice was made nothing else is set */
    int32_t token;
    float logprob; /* set when asked for; else 0 */
    int32_t n_alternatives;
    ol_token_logprob alternatives[OL_MAX_LOGPROBS]; /* best first, ids break ties */
} ol_choice;

#endif
