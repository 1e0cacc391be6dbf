/* request_wait.c: waiting for requests, whatever becomes of the engine: see request_internal.h. */
#include "request_internal.h"

/* A tag goes with an engine, which costs a retry, or when the subtransaction that sent it
 * is undone while the query goes on (a cursor's), which costs none. */
void lora_request_revive(LoraRequest *request)
{
    ol_error error;

    if (request->ended || lora_session_is_live(request->tag))
        return;
    if (request->losses != lora_session_losses() && request->retries_left-- <= 0) {
        ol_fail(&error, OL_LOST, "the openlora engine was lost while it answered");
        ol_hint(&error, "Try again; openlora.max_retries retries were made.");
        lora_request_fail(request, &error);
    } else if (!lora_session_ready(&error)) {
        lora_request_fail(request, &error);
    } else {
        lora_request_send(request);
    }
}

void lora_request_step(LoraRequest *request)
{
    if (!lora_session_is_live(request->tag))
        lora_request_revive(request);
    else
        (void)lora_request_take_frame(true);
}

bool lora_request_wait(LoraRequest *request, ol_error *error)
{
    while (!request->ended)
        lora_request_step(request);
    return !lora_request_failed(request, error);
}

void lora_requests_poll(void)
{
    while (lora_requests_fly() && lora_request_take_frame(false) == LORA_IO_OK)
        ;
}

/* -- what has come: nothing of it leaves before the announcement is on disk ------------------- */

LoraToken *lora_request_next_token(LoraRequest *request)
{
    LoraToken *token;

    while (!request->next && !request->ended)
        lora_request_step(request);
    token = request->next;
    lora_ledger_await(&request->announced);
    if (token)
        request->next = token->next;
    return token;
}

const LoraResult *lora_request_result(const LoraRequest *request)
{
    lora_ledger_await(&request->announced);
    return &request->result;
}

LoraToken *lora_request_tokens(const LoraRequest *request)
{
    lora_ledger_await(&request->announced);
    return request->tokens;
}
