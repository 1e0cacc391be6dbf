/*
 * request.h: requests to the engine, from a backend's side.
 *
 * Several may be in flight; frames are handed to the request they are for, whichever is
 * waited on. When the engine is lost, requests in flight are sent again with the same
 * seed, so that their tokens are the same; those already handed out are skipped. When the engine
 * that comes computes otherwise, a request begins anew if nothing of it was handed out, and fails
 * if anything was: no answer is made of two.
 *
 * A request lives in a memory context of its own, a child of the one that is current at
 * its start. It ends with it: when that memory goes, by whatever way, the request is
 * cancelled.
 */
#ifndef LORA_REQUEST_H
#define LORA_REQUEST_H

#include "lora_pg.h"

#include "adapters.h"
#include "engine/engine.h"
#include "lib/stringinfo.h"
#include "wire/message.h"

/* What to do. Memory must live as long as the request. */
typedef struct LoraSpec {
    const char *function; /* for attribution: "lora_generate" */
    ol_task task;
    const char *prompt; /* UTF-8 */
    Size prompt_len;
    const char *completion;
    Size completion_len;
    int n_adapters;
    LoraAdapterRef *adapters;
    ol_sampling sampling;
} LoraSpec;

/* One token as it arrived. */
typedef struct LoraToken {
    struct LoraToken *next;
    int index;
    int32 token;
    char *text; /* UTF-8, NUL-terminated */
    float4 logprob;
    int n_alternatives;
    ol_token_logprob *alternatives;
} LoraToken;

typedef struct LoraRequest LoraRequest;

/* Sends it. `keep_tokens`: tokens are kept for lora_request_next_token; else only the
 * text is. False with an error when it cannot be sent. */
extern LoraRequest *lora_request_start(const LoraSpec *spec, bool keep_tokens, ol_error *error);
/* Waits for its end. False with the error when it failed. */
extern bool lora_request_wait(LoraRequest *request, ol_error *error);
/* Whether it has ended, well or not. */
extern bool lora_request_ended(const LoraRequest *request);
/* One step on the way to its end: a frame for any request is taken, or it is sent again. */
extern void lora_request_step(LoraRequest *request);
/* Sends it again if its tag has gone while it had not ended. */
extern void lora_request_revive(LoraRequest *request);
/* Takes the frames that are there, for whichever request, without waiting. */
extern void lora_requests_poll(void);
/* How many requests of this backend have ended so far. */
extern uint64 lora_requests_ended(void);
/* Waits until one of this backend's has. False: none is on its way. For a request that was refused:
 * what fills the engine's queue, or a quota, may be this backend's own. */
extern bool lora_requests_outlast_one(void);
/* The next token, waiting for it; NULL at the end (see lora_request_failed). */
extern LoraToken *lora_request_next_token(LoraRequest *request);
extern bool lora_request_failed(const LoraRequest *request, ol_error *error);
/* Ends it if it is running, and frees it. */
extern void lora_request_free(LoraRequest *request);

/* Results, when it has ended well. */
typedef struct LoraResult {
    int64 inference;       /* its id, from the start on */
    ol_engine_info engine; /* that answered: what is recorded of model and device is of it */
    ol_digest salt;        /* of the digests of its receipt */
    StringInfoData text;   /* UTF-8 */
    ol_finish finish;
    int prompt_tokens, completion_tokens;
    int cached_tokens; /* of the prompt: found computed by an earlier request */
    double logprob_sum;
    int n_shares;
    double shares[OL_MAX_REQUEST_ADAPTERS];
    uint64 queue_us, prefill_us, decode_us;
} LoraResult;

extern const LoraResult *lora_request_result(const LoraRequest *request);
extern LoraToken *lora_request_tokens(const LoraRequest *request);

#endif
