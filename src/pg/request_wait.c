/* request_wait.c: waiting for requests, whatever becomes of the engine: see request_internal.h. */
#include "request_internal.h"

/* -- another engine ------------------------------------------------------------------------- */

/* Whether both make the same tokens of a request (P6). */
static bool are_alike(const ol_engine_info *a, const ol_engine_info *b)
{
    return ol_digest_equal(&a->model_digest, &b->model_digest) &&
           strcmp(a->device.description, b->device.description) == 0 && a->context == b->context;
}

static void refuse_to_go_on(const ol_engine_info *was, const ol_engine_info *is, ol_error *error)
{
    ol_fail(error, OL_LOST, "the openlora engine was lost, and what came computes otherwise");
    if (!ol_digest_equal(&was->model_digest, &is->model_digest))
        ol_detail(error, "The answer began with model \"%s\"; now there is \"%s\".",
                  was->model_name, is->model_name);
    else if (was->context != is->context)
        ol_detail(error, "The answer began with a context of %d tokens; now it has %d.",
                  was->context, is->context);
    else
        ol_detail(error, "The answer began on \"%s\"; now there is \"%s\".",
                  was->device.description, is->device.description);
    ol_hint(error, "Ask again: what came of this answer is all that there will be of it.");
}

/* What came of it, and was not handed out, never was. */
static void begin_anew(LoraRequest *request)
{
    request->seen = 0;
    resetStringInfo(&request->result.text);
    request->tokens = request->next = NULL;
    request->tokens_end = &request->tokens;
}

/* Before it is sent again: no answer is of two engines that make other tokens each. */
static bool may_go_on(LoraRequest *request, ol_error *error)
{
    const ol_engine_info *engine = lora_session_engine();

    if (request->seen == 0 || are_alike(&request->result.engine, engine))
        return true;
    if (request->handed_out)
        refuse_to_go_on(&request->result.engine, engine, error);
    else
        begin_anew(request);
    return !request->handed_out;
}

/* -- waiting -------------------------------------------------------------------------------- */

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
    } else if (!lora_session_ready(&error) || !may_go_on(request, &error)) {
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

bool lora_requests_outlast_one(void)
{
    uint64 before = lora_requests_ended();

    if (!lora_requests_live())
        return false;
    while (lora_requests_live() && lora_requests_ended() == before)
        (void)lora_request_take_frame(true);
    return true;
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
    if (token) {
        request->next = token->next;
        request->handed_out = true;
    }
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
