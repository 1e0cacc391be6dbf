/* request_receive.c: what comes back of requests: see request_internal.h. */
#include "request_internal.h"

#include "adapter_send.h"
#include "utf8.h"

/* -- adapters ------------------------------------------------------------------------------- */

static void bring_adapter(LoraRequest *request, const ol_digest *digest)
{
    LoraAdapterRef *ref = NULL;
    LoraAdapterReader *reader = NULL;
    ol_error error;

    for (int i = 0; i < request->spec.n_adapters; i++)
        if (ol_digest_equal(&request->spec.adapters[i].digest, digest))
            ref = &request->spec.adapters[i];
    if (!ref)
        return;
    if (!lora_session_outlives || lora_adapter_find_again(ref, &error))
        reader = lora_adapter_open(ref, &error);
    if (!reader) {
        uint64 tag = request->tag;

        lora_request_fail(request, &error);
        lora_session_cancel(tag);
        return;
    }
    (void)lora_adapter_send(request->tag, OL_FRAME_ADAPTER, reader, digest);
    lora_adapter_close(reader);
}

/* -- tokens --------------------------------------------------------------------------------- */

static void take_token(LoraRequest *request, const ol_event *event)
{
    LoraToken *token;
    StringInfoData text;

    if (event->index < request->seen)
        return;
    request->seen = event->index + 1;
    lora_quota_took(request->claim, lora_guess_prompt_tokens(&request->spec) + request->seen);
    lora_append_utf8(&request->result.text, event->text.data, event->text.len);
    if (!request->keep_tokens)
        return;
    token = palloc0(sizeof(*token));
    token->index = event->index;
    token->token = event->token;
    initStringInfo(&text);
    lora_append_utf8(&text, event->text.data, event->text.len);
    token->text = text.data;
    token->logprob = event->logprob;
    token->n_alternatives = event->n_alternatives;
    token->alternatives = palloc(sizeof(ol_token_logprob) * (Size)(event->n_alternatives + 1));
    memcpy(token->alternatives, event->alternatives,
           sizeof(ol_token_logprob) * (Size)event->n_alternatives);
    *request->tokens_end = token;
    request->tokens_end = &token->next;
    if (!request->next)
        request->next = token;
}

/* Text that was held back in case it began a stop string comes with DONE: a last piece
 * without a token of its own. */
static void take_done(LoraRequest *request, const ol_event *event)
{
    LoraResult *result = &request->result;

    if (event->text.len) {
        ol_event rest = {.index = request->seen, .token = -1, .text = event->text};

        take_token(request, &rest);
    }
    result->finish = event->finish;
    result->prompt_tokens = event->prompt_tokens;
    result->completion_tokens = event->completion_tokens;
    result->cached_tokens = event->cached_tokens;
    result->logprob_sum = event->logprob_sum;
    result->n_shares = event->n_shares;
    memcpy(result->shares, event->shares, sizeof(double) * (Size)event->n_shares);
    result->queue_us = event->queue_us;
    result->prefill_us = event->prefill_us;
    result->decode_us = event->decode_us;
    lora_quota_took(request->claim, (int64)event->prompt_tokens + event->completion_tokens);
    lora_request_end(request);
}

/* -- frames --------------------------------------------------------------------------------- */

static void take_event(LoraRequest *request, const uint8 *payload, uint32 length)
{
    MemoryContext before = MemoryContextSwitchTo(request->context);
    ol_reader r = ol_reader_over(payload, length);
    ol_wire_event_scratch scratch;
    ol_event event;

    if (!ol_wire_get_event(&r, &scratch, &event)) {
        ol_fail(&event.error, OL_INTERNAL, "the openlora engine sent a malformed event");
        event.kind = OL_EVENT_FAILED;
    }
    switch (event.kind) {
    case OL_EVENT_TOKEN:
        take_token(request, &event);
        break;
    case OL_EVENT_NEED_ADAPTER:
        bring_adapter(request, &event.digest);
        break;
    case OL_EVENT_DONE:
        take_done(request, &event);
        break;
    case OL_EVENT_FAILED:
        lora_request_fail(request, &event.error);
        break;
    case OL_EVENT_USAGE: /* the worker's: no decoder gives it */
        break;
    }
    MemoryContextSwitchTo(before);
}

void lora_request_dispatch(const ol_frame *frame, const uint8 *payload)
{
    LoraRequest *target = lora_request_of_tag(frame->tag);
    ol_error error;

    if (target && frame->type == OL_FRAME_EVENT)
        take_event(target, payload, frame->length);
    else if (target && frame->type == OL_FRAME_FAILED) {
        ol_reader r = ol_reader_over(payload, frame->length);

        if (!ol_wire_get_error(&r, &error))
            ol_fail(&error, OL_INTERNAL, "the openlora engine sent a malformed error");
        lora_request_fail(target, &error);
    }
}

LoraIo lora_request_take_frame(bool wait)
{
    ol_frame frame;
    const uint8 *payload;
    LoraIo io = lora_session_receive(&frame, &payload, wait);

    if (io == LORA_IO_OK)
        lora_request_dispatch(&frame, payload);
    return io;
}
