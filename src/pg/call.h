/*
 * call.h: one call of a function that answers with a single value, from its arguments to
 * its result. A plain call starts and finishes at once; the pipeline's node starts many
 * before it finishes the first.
 */
#ifndef LORA_CALL_H
#define LORA_CALL_H

#include "lora_pg.h"

#include "request.h"

typedef enum LoraFunction {
    LORA_NO_FUNCTION,
    LORA_GENERATE,
    LORA_COMPLETE,
    LORA_SCORE,
    LORA_SCORE_DETAIL,
    LORA_STREAM, /* returns rows: none of those that have a LoraCall */
} LoraFunction;

/* Which of them the code at an address is. */
extern LoraFunction lora_function_at(PGFunction address);

typedef struct LoraCall {
    LoraFunction function;
    bool null_on_error, failed;
    LoraRequest *request; /* NULL: none was made, for a NULL argument or an error */
    LoraSpec spec;
    ol_error error; /* when failed */
} LoraCall;

/* Checks the arguments and sends the request. What is wrong with a row's data is kept for
 * lora_call_finish. The arguments, and the current memory context, must live as long as
 * the call. */
extern void lora_call_start(LoraCall *call, LoraFunction function, FunctionCallInfo fcinfo);
/* Whether lora_call_finish would not wait. */
extern bool lora_call_ended(const LoraCall *call);
/* Whether a call that has ended was turned away for want of room: the engine's queue was
 * full, or a quota is held by what is running. lora_call_again sends it once more. */
extern bool lora_call_refused(const LoraCall *call);
extern void lora_call_again(LoraCall *call);
/* Waits for the answer, attributes it, and frees the request. Raises the call's error,
 * unless on_error said otherwise. */
extern Datum lora_call_finish(LoraCall *call, FunctionCallInfo fcinfo, bool *is_null);

/* The value of a call that has ended, before it is attributed. False if it has none but
 * an error to raise. What the attribution brings (lora_complete's inference_id) is NULL. */
extern bool lora_call_peek(const LoraCall *call, FunctionCallInfo fcinfo, Datum *value,
                           bool *is_null);

/* lora_complete's column whose value comes with the attribution, from 1. */
#define LORA_COMPLETE_INFERENCE 8

#endif
