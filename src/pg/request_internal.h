/*
 * request_internal.h: a request, as the files of request.h share it.
 *
 *   request_send.c     what goes to the engine: the request, announced where it must be
 *   request.c          its beginning and end; those that are in flight
 *   request_receive.c  what comes back: tokens, wants of an adapter, the end
 *   request_wait.c     waiting for that, and sending again what was lost with an engine
 *
 * Each calls those above it alone.
 */
#ifndef LORA_REQUEST_INTERNAL_H
#define LORA_REQUEST_INTERNAL_H

#include "request.h"

#include "access.h"
#include "ledger.h"
#include "receipt.h"
#include "session.h"

struct LoraRequest {
    MemoryContext context;
    MemoryContextCallback at_end; /* of the context */
    LoraSpec spec;
    uint64 tag;
    uint64 losses; /* of the session, when it was sent */
    int place;     /* in `flying`, or -1 */
    bool keep_tokens, ended, failed;
    ol_error error;
    int retries_left, attempts;
    LoraQuotaClaim claim;
    LoraReceipt *announcement; /* NULL: it is not to be announced */
    LoraAnnounced announced;
    bool sent;       /* once at least: the worker sees to its receipt */
    int seen;        /* token events taken; a retry repeats them and they are skipped */
    bool handed_out; /* some of them */
    LoraResult result;
    LoraToken *tokens, **tokens_end, *next;
};

/* The one in flight that a frame is for, or NULL. */
extern LoraRequest *lora_request_of_tag(uint64 tag);
/* Whether any is in flight. */
extern bool lora_requests_fly(void);
/* ... that the engine has. */
extern bool lora_requests_live(void);
/* It has ended, well or with an error: nothing more is expected of it. */
extern void lora_request_end(LoraRequest *request);
extern void lora_request_fail(LoraRequest *request, const ol_error *error);

/* Where receipts must not be lost unnoticed, what is metered is announced first. Nobody waits for
 * the disk yet, unless there is no room: the engine works meanwhile. */
extern bool lora_request_announce(LoraRequest *request, ol_error *error);
/* What was announced and never sent has a receipt, too. */
extern void lora_request_end_announcement(LoraRequest *request);
/* Sends it, under a new tag. */
extern void lora_request_send(LoraRequest *request);
/* Tokens of prompt and completion, before they are known. */
extern int64 lora_guess_prompt_tokens(const LoraSpec *spec);

/* Hands a frame to the request that it is for. */
extern void lora_request_dispatch(const ol_frame *frame, const uint8 *payload);
/* Takes one for anybody. */
extern LoraIo lora_request_take_frame(bool wait);

#endif
