/*
 * sampler.h: from a row of logits to a token.
 *
 * Order of operations, as vLLM and transformers have it: repetition, presence and
 * frequency penalties; logit bias; temperature; min_p; top_k; top_p over what is
 * left; then one draw. The draw uses a number that depends on (seed, index of the
 * output token) alone, so that a request can be replayed from any point and does
 * not depend on its neighbours (P6). Reported log-probabilities are those of the
 * raw logits.
 */
#ifndef OL_ENGINE_SAMPLER_H
#define OL_ENGINE_SAMPLER_H

#include "base/status.h"
#include "engine/engine.h"

typedef struct ol_sampler ol_sampler;                 /* of one request */
typedef struct ol_sampler_scratch ol_sampler_scratch; /* shared by all of an engine */

/* Ranges of every field, NaN included; token ids of the bias against vocab. */
ol_code ol_sampling_check(const ol_sampling *sampling, int vocab, ol_error *err);

ol_code ol_sampler_scratch_create(int vocab, ol_sampler_scratch **scratch, ol_error *err);
void ol_sampler_scratch_free(ol_sampler_scratch *scratch);

/* Copies what it needs of `sampling`, which must have passed ol_sampling_check. */
ol_code ol_sampler_create(const ol_sampling *sampling, int vocab, ol_sampler **sampler,
                          ol_error *err);
void ol_sampler_free(ol_sampler *sampler); /* NULL is fine */

/* Tells the penalties which tokens are there. */
ol_code ol_sampler_see_prompt(ol_sampler *sampler, const int32_t *tokens, size_t n, ol_error *err);
ol_code ol_sampler_see_output(ol_sampler *sampler, int32_t token, ol_error *err);

typedef struct ol_choice {
    int32_t token;
    float logprob; /* set when the request asks for logprobs; else 0 */
    int n_alternatives;
    ol_token_logprob alternatives[OL_MAX_LOGPROBS];
} ol_choice;

/* Chooses output token number `index` (from 0). Fails when the logits hold a NaN or
 * leave no token to choose. */
ol_code ol_sampler_choose(ol_sampler *sampler, ol_sampler_scratch *scratch, const float *logits,
                          int index, ol_choice *choice, ol_error *err);

/* log softmax(logits)[token], and the n most likely (best first, ids break ties). */
float ol_logprob_of(const float *logits, int vocab, int32_t token);
void ol_logprob_top(const float *logits, int vocab, int n, ol_token_logprob *top);

#endif
