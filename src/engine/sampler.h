/*
 * sampler.h: what a request wants of its tokens, and what it has seen: from these the ol_pick of
 * its next token. How that becomes a token: base/choice.h.
 *
 * A pick depends on the request's own tokens alone, so that a request can be replayed from any
 * point and does not depend on its neighbours (P6).
 */
#ifndef OL_ENGINE_SAMPLER_H
#define OL_ENGINE_SAMPLER_H

#include "base/status.h"
#include "engine/engine.h"

typedef struct ol_sampler ol_sampler; /* of one request */

/* Ranges of every field, NaN included; token ids of the bias against vocab. */
ol_code ol_sampling_check(const ol_sampling *sampling, int vocab, ol_error *err);

/* Copies what it needs of `sampling`, which must have passed ol_sampling_check. */
ol_code ol_sampler_create(const ol_sampling *sampling, ol_sampler **sampler, ol_error *err);
void ol_sampler_free(ol_sampler *sampler); /* NULL is fine */
/* Once: what may follow is asked of `constraint` from now on. */
ol_code ol_sampler_constrain(ol_sampler *sampler, const ol_constraint *constraint, int vocab,
                             ol_error *err);

/* Tells the penalties which tokens are there. */
ol_code ol_sampler_see_prompt(ol_sampler *sampler, const int32_t *tokens, size_t n, ol_error *err);
ol_code ol_sampler_see_output(ol_sampler *sampler, int32_t token, ol_error *err);

/* How the token after `output` is chosen. What the pick points to is the sampler's, until
 * something is told to it or another pick asked for. */
void ol_sampler_pick(ol_sampler *sampler, const int32_t *output, int n_output, ol_pick *pick);

#endif
