/* request.c: a request's beginning and end: see request.h and request_internal.h. */
#include "request_internal.h"

#include "lists.h"

/* Requests that have not ended. One whose tag is not live any more (its transaction
 * ended, or the engine was lost) is not found by it. */
static LoraRequest **flying;
static int n_flying, max_flying;
static uint64 n_ended;

static void note_flying(LoraRequest *request)
{
    flying = lora_list_room(flying, n_flying, &max_flying, sizeof(*flying));
    request->place = n_flying;
    flying[n_flying++] = request;
}

static void forget_flying(LoraRequest *request)
{
    if (request->place < 0)
        return;
    flying[request->place] = flying[--n_flying];
    flying[request->place]->place = request->place;
    request->place = -1;
}

LoraRequest *lora_request_of_tag(uint64 tag)
{
    for (int i = 0; i < n_flying; i++)
        if (flying[i]->tag == tag)
            return lora_session_is_live(tag) ? flying[i] : NULL;
    return NULL;
}

bool lora_requests_fly(void)
{
    return n_flying > 0;
}

bool lora_requests_live(void)
{
    for (int i = 0; i < n_flying; i++)
        if (lora_session_is_live(flying[i]->tag))
            return true;
    return false;
}

/* -- its end -------------------------------------------------------------------------------- */

void lora_request_end(LoraRequest *request)
{
    lora_request_end_announcement(request);
    request->ended = true;
    n_ended++;
    lora_quota_end(request->claim);
    lora_session_forget(request->tag);
    forget_flying(request);
}

void lora_request_fail(LoraRequest *request, const ol_error *error)
{
    request->failed = true;
    request->error = *error;
    lora_request_end(request);
}

/* Its memory goes: by lora_request_free, the end of the query, or an error. */
static void at_end_of_memory(void *arg)
{
    LoraRequest *request = arg;

    if (!request->ended && lora_session_is_live(request->tag))
        lora_session_cancel(request->tag);
    lora_request_end_announcement(request);
    lora_quota_end(request->claim);
    forget_flying(request);
}

void lora_request_free(LoraRequest *request)
{
    MemoryContextDelete(request->context);
}

/* -- its beginning -------------------------------------------------------------------------- */

static LoraRequest *new_request(const LoraSpec *spec, bool keep_tokens)
{
    MemoryContext context =
        AllocSetContextCreate(CurrentMemoryContext, "openlora request", ALLOCSET_SMALL_SIZES);
    MemoryContext before = MemoryContextSwitchTo(context);
    LoraRequest *request = palloc0(sizeof(*request));

    request->context = context;
    request->spec = *spec;
    request->keep_tokens = keep_tokens;
    request->tokens_end = &request->tokens;
    request->retries_left = lora_max_retries;
    lora_make_salt(&request->result.salt);
    initStringInfo(&request->result.text);
    MemoryContextSwitchTo(before);
    return request;
}

LoraRequest *lora_request_start(const LoraSpec *spec, bool keep_tokens, ol_error *error)
{
    LoraRequest *request;
    LoraQuotaClaim claim;
    int64 inference;

    if (!lora_session_ready(error))
        return NULL;
    /* before there is anything to be given back */
    inference = lora_attribution ? lora_next_inference() : 0;
    if (!lora_claim_quotas(spec->adapters, spec->n_adapters,
                           lora_guess_prompt_tokens(spec) + spec->sampling.max_tokens, &claim,
                           error))
        return NULL;
    request = new_request(spec, keep_tokens);
    request->claim = claim;
    request->result.inference = inference;
    note_flying(request);
    request->at_end.func = at_end_of_memory;
    request->at_end.arg = request;
    MemoryContextRegisterResetCallback(request->context, &request->at_end);
    if (!lora_request_announce(request, error)) {
        lora_request_free(request);
        return NULL;
    }
    lora_request_send(request);
    return request;
}

/* -- asking about it ------------------------------------------------------------------------ */

bool lora_request_ended(const LoraRequest *request)
{
    return request->ended;
}

uint64 lora_requests_ended(void)
{
    return n_ended;
}

bool lora_request_failed(const LoraRequest *request, ol_error *error)
{
    if (request->failed)
        *error = request->error;
    return request->failed;
}
