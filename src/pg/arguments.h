/*
 * arguments.h: from SQL arguments to a checked LoraSpec.
 */
#ifndef LORA_ARGUMENTS_H
#define LORA_ARGUMENTS_H

#include "lora_pg.h"

#include "request.h"

/* Positions of the arguments that lora_generate, lora_complete and lora_stream share. */
enum {
    LORA_ARG_ADAPTERS,
    LORA_ARG_PROMPT,
    LORA_ARG_WEIGHTS,
    LORA_ARG_MAX_TOKENS,
    LORA_ARG_TEMPERATURE,
    LORA_ARG_TOP_K,
    LORA_ARG_TOP_P,
    LORA_ARG_MIN_P,
    LORA_ARG_REPETITION,
    LORA_ARG_PRESENCE,
    LORA_ARG_FREQUENCY,
    LORA_ARG_LOGIT_BIAS,
    LORA_ARG_SEED,
    LORA_ARG_STOP,
    LORA_ARG_IGNORE_EOS,
    LORA_ARG_ON_ERROR,
    LORA_ARG_LOGPROBS, /* lora_complete alone */
};

/* Fills a spec in the current memory context. False with an error; raises only on what is
 * wrong with the statement rather than with its data (on_error itself). */
extern bool lora_spec_from_arguments(FunctionCallInfo fcinfo, const char *function, LoraSpec *spec,
                                     ol_error *error);
/* Adapters and weights alone. */
extern bool lora_spec_adapters(LoraSpec *spec, ArrayType *ids, ArrayType *weights, ol_error *error);
/* Whether on_error asks for NULL instead of an error. */
extern bool lora_on_error_null(FunctionCallInfo fcinfo, int argument);

#endif
