/*
 * sampling.h: how a request wants its tokens chosen. Plain data, shared by the
 * engine's interface, the sampler and the wire.
 */
#ifndef OL_ENGINE_SAMPLING_H
#define OL_ENGINE_SAMPLING_H

#include "base/choice.h"

#include <stdbool.h>
#include <stddef.h>

#define OL_MAX_LOGIT_BIAS 1024
#define OL_MAX_STOPS 16
#define OL_MAX_STOP_BYTES 1024

typedef struct ol_text {
    const char *data;
    size_t len;
} ol_text;

typedef struct ol_sampling {
    float temperature;        /* 0: greedy (the lowest id of equal logits wins) */
    int top_k;                /* 0: off */
    float top_p;              /* 1: off */
    float min_p;              /* 0: off */
    float repetition_penalty; /* 1: off; over prompt and output, as in CTRL (Keskar 2019) */
    float presence_penalty;   /* 0: off; over output, once per distinct token */
    float frequency_penalty;  /* 0: off; over output, per occurrence */
    uint64_t seed;
    int max_tokens; /* of output; at least 0 */
    bool ignore_eos;
    int logprobs; /* -1: none; k >= 0: the chosen token's and k alternatives' */
    int n_bias;
    const ol_logit_bias *bias;
    int n_stops;
    const ol_text *stops; /* output ends before the first occurrence of any */
} ol_sampling;

/* Greedy, everything off, max_tokens 0. */
ol_sampling ol_sampling_default(void);

#endif
