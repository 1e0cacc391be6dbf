/* request.c: see request.h. */
#include "request.h"

#include "access.h"
#include "session.h"
#include "utils/memutils.h"
#include "wire/message.h"

#define BYTES_PER_TOKEN 4 /* about; only what is reserved depends on it, not what is charged */

struct LoraRequest {
    MemoryContext context;
    LoraSpec spec;
    uint64 tag;
    bool keep_tokens, ended, failed;
    ol_error error;
    int retries_left;
    LoraQuotaClaim claim;
    int seen; /* token events taken; a retry repeats them and they are skipped */
    LoraResult result;
    LoraToken *tokens, **tokens_end, *next;
};

/* Requests whose frames may arrive, by tag. An entry whose tag is not live any more (its
 * transaction ended) is stale, and its pointer is not followed. */
static struct {
    uint64 tag;
    LoraRequest *request;
} * flying;
static int n_flying, max_flying;

static void note_flying(LoraRequest *request)
{
    int kept = 0;

    for (int i = 0; i < n_flying; i++)
        if (lora_session_is_live(flying[i].tag))
            flying[kept++] = flying[i];
    n_flying = kept;
    if (n_flying == max_flying) {
        max_flying = max_flying ? 2 * max_flying : 16;
        if (flying)
            flying = repalloc(flying, sizeof(*flying) * (Size)max_flying);
        else
            flying = MemoryContextAlloc(TopMemoryContext, sizeof(*flying) * (Size)max_flying);
    }
    flying[n_flying].tag = request->tag;
    flying[n_flying++].request = request;
}

static LoraRequest *find_flying(uint64 tag)
{
    for (int i = 0; i < n_flying; i++)
        if (flying[i].tag == tag && lora_session_is_live(tag))
            return flying[i].request;
    return NULL;
}

/* -- sending --------------------------------------------------------------------------------- */

static void fail_request(LoraRequest *request, const ol_error *error)
{
    request->failed = request->ended = true;
    request->error = *error;
    lora_quota_end(request->claim);
    lora_session_forget(request->tag);
}

/* A lost connection shows at the next wait. */
static void send_request(LoraRequest *request)
{
    const LoraSpec *spec = &request->spec;
    ol_adapter_use adapters[OL_MAX_REQUEST_ADAPTERS];
    ol_request wire = {.task = spec->task,
                       .prompt = {spec->prompt, spec->prompt_len},
                       .completion = {spec->completion, spec->completion_len},
                       .n_adapters = spec->n_adapters,
                       .adapters = adapters,
                       .sampling = spec->sampling};
    ol_buf *buf;

    for (int i = 0; i < spec->n_adapters; i++) {
        adapters[i].digest = spec->adapters[i].digest;
        adapters[i].weight = (float)spec->adapters[i].weight;
    }
    request->tag = lora_session_tag();
    note_flying(request);
    if (lora_session_upload(request->tag, spec->prompt, spec->prompt_len) != LORA_IO_OK ||
        lora_session_upload(request->tag, spec->completion, spec->completion_len) != LORA_IO_OK)
        return;
    buf = lora_session_buffer();
    ol_wire_put_request(buf, &wire);
    if (buf->failed)
        ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
    (void)lora_session_send(OL_FRAME_REQUEST, request->tag, buf->data, (uint32)buf->len);
}

/* Tokens of a text, before it is known. */
static int64 guess_tokens(Size bytes)
{
    return (int64)(bytes / BYTES_PER_TOKEN) + 1;
}

static int64 guess_prompt_tokens(const LoraSpec *spec)
{
    return guess_tokens(spec->prompt_len) + guess_tokens(spec->completion_len);
}

LoraRequest *lora_request_start(const LoraSpec *spec, bool keep_tokens, ol_error *error)
{
    MemoryContext context, before;
    LoraRequest *request;
    LoraQuotaClaim claim;

    if (!lora_session_ready(error) ||
        !lora_claim_quotas(spec->adapters, spec->n_adapters,
                           guess_prompt_tokens(spec) + spec->sampling.max_tokens, &claim, error))
        return NULL;
    context = AllocSetContextCreate(CurrentMemoryContext, "openlora request", ALLOCSET_SMALL_SIZES);
    before = MemoryContextSwitchTo(context);
    request = palloc0(sizeof(*request));
    request->context = context;
    request->spec = *spec;
    request->keep_tokens = keep_tokens;
    request->tokens_end = &request->tokens;
    request->retries_left = lora_max_retries;
    request->claim = claim;
    initStringInfo(&request->result.text);
    MemoryContextSwitchTo(before);
    send_request(request);
    return request;
}

/* Streams an adapter's weights and config, then the frame that consumes them. */
static LoraIo send_adapter(uint64 tag, uint16 type, LoraAdapterReader *reader,
                           const ol_digest *digest)
{
    ol_wire_adapter adapter = {.weights_len = lora_adapter_length(reader)};
    char *chunk = palloc(OL_FRAME_PAYLOAD);
    Size n, config_len;
    const char *config = lora_adapter_config(reader, &config_len);
    LoraIo io = LORA_IO_OK;
    ol_buf *buf;

    lora_adapter_rewind(reader);
    while (io == LORA_IO_OK && (n = lora_adapter_read(reader, chunk, OL_FRAME_PAYLOAD)) > 0)
        io = lora_session_send(OL_FRAME_DATA, tag, chunk, (uint32)n);
    pfree(chunk);
    if (io == LORA_IO_OK)
        io = lora_session_upload(tag, config, config_len);
    if (io != LORA_IO_OK)
        return io;
    if (digest)
        adapter.digest = *digest;
    adapter.config_len = config_len;
    buf = lora_session_buffer();
    ol_wire_put_adapter(buf, &adapter);
    return lora_session_send(type, tag, buf->data, (uint32)buf->len);
}

static void bring_adapter(LoraRequest *request, const ol_digest *digest)
{
    const LoraAdapterRef *ref = NULL;
    LoraAdapterReader *reader;
    ol_error error;

    for (int i = 0; i < request->spec.n_adapters; i++)
        if (ol_digest_equal(&request->spec.adapters[i].digest, digest))
            ref = &request->spec.adapters[i];
    if (!ref)
        return;
    reader = lora_adapter_open(ref, &error);
    if (!reader) {
        uint64 tag = request->tag;

        fail_request(request, &error);
        lora_session_cancel(tag);
        return;
    }
    (void)send_adapter(request->tag, OL_FRAME_ADAPTER, reader, digest);
    lora_adapter_close(reader);
}

/* -- receiving ------------------------------------------------------------------------------------
 */

static void take_token(LoraRequest *request, const ol_event *event)
{
    LoraToken *token;

    if (event->index < request->seen)
        return;
    request->seen = event->index + 1;
    lora_quota_took(request->claim, guess_prompt_tokens(&request->spec) + request->seen);
    appendBinaryStringInfo(&request->result.text, event->text.data, (int)event->text.len);
    if (!request->keep_tokens)
        return;
    token = palloc0(sizeof(*token));
    token->index = event->index;
    token->token = event->token;
    token->text = pnstrdup(event->text.data, event->text.len);
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
    result->logprob_sum = event->logprob_sum;
    result->n_shares = event->n_shares;
    memcpy(result->shares, event->shares, sizeof(double) * (Size)event->n_shares);
    result->queue_us = event->queue_us;
    result->prefill_us = event->prefill_us;
    result->decode_us = event->decode_us;
    lora_quota_took(request->claim, (int64)event->prompt_tokens + event->completion_tokens);
    lora_quota_end(request->claim);
    request->ended = true;
    lora_session_forget(request->tag);
}

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
        fail_request(request, &event.error);
        break;
    }
    MemoryContextSwitchTo(before);
}

/* One frame for anybody, or one retry of this request. */
static void advance(LoraRequest *request)
{
    ol_frame frame;
    const uint8 *payload;
    LoraRequest *target;
    ol_error error;

    if (!lora_session_is_live(request->tag)) { /* the engine was lost */
        if (request->retries_left-- <= 0) {
            ol_fail(&error, OL_LOST, "the openlora engine was lost while it answered");
            ol_hint(&error, "Try again; openlora.max_retries retries were made.");
            fail_request(request, &error);
        } else if (!lora_session_ready(&error)) {
            fail_request(request, &error);
        } else {
            send_request(request);
        }
        return;
    }
    if (lora_session_receive(&frame, &payload) != LORA_IO_OK)
        return;
    target = find_flying(frame.tag);
    if (target && frame.type == OL_FRAME_EVENT)
        take_event(target, payload, frame.length);
    else if (target && frame.type == OL_FRAME_FAILED) {
        ol_reader r = ol_reader_over(payload, frame.length);

        if (!ol_wire_get_error(&r, &error))
            ol_fail(&error, OL_INTERNAL, "the openlora engine sent a malformed error");
        fail_request(target, &error);
    }
}

bool lora_request_failed(const LoraRequest *request, ol_error *error)
{
    if (request->failed)
        *error = request->error;
    return request->failed;
}

bool lora_request_wait(LoraRequest *request, ol_error *error)
{
    while (!request->ended)
        advance(request);
    return !lora_request_failed(request, error);
}

LoraToken *lora_request_next_token(LoraRequest *request)
{
    LoraToken *token;

    while (!request->next && !request->ended)
        advance(request);
    token = request->next;
    if (token)
        request->next = token->next;
    return token;
}

void lora_request_free(LoraRequest *request)
{
    if (!request->ended && lora_session_is_live(request->tag))
        lora_session_cancel(request->tag);
    lora_session_forget(request->tag);
    lora_quota_end(request->claim);
    MemoryContextDelete(request->context);
}

const LoraResult *lora_request_result(const LoraRequest *request)
{
    return &request->result;
}

LoraToken *lora_request_tokens(const LoraRequest *request)
{
    return request->tokens;
}

/* -- single questions
 * ----------------------------------------------------------------------------------- */

/* Waits for a frame of the tag; others go where they belong. */
static LoraIo answer_to(uint64 tag, ol_frame *frame, const uint8 **payload)
{
    for (;;) {
        LoraIo io = lora_session_receive(frame, payload);
        LoraRequest *other;

        if (io != LORA_IO_OK || frame->tag == tag)
            return io;
        other = find_flying(frame->tag);
        if (other && frame->type == OL_FRAME_EVENT)
            take_event(other, *payload, frame->length);
    }
}

static void lost_error(ol_error *error)
{
    ol_fail(error, OL_LOST, "the openlora engine was lost while it answered");
    ol_hint(error, "Try again.");
}

int lora_check_adapter(LoraAdapterReader *reader, ol_adapter_facts *facts, ol_error *error)
{
    const uint8 *payload;
    ol_frame frame;
    ol_reader r;
    uint64 tag;
    int result = -1;

    if (!lora_session_ready(error))
        return -1;
    tag = lora_session_tag();
    if (send_adapter(tag, OL_FRAME_ADAPTER_CHECK, reader, NULL) == LORA_IO_OK &&
        answer_to(tag, &frame, &payload) == LORA_IO_OK) {
        r = ol_reader_over(payload, frame.length);
        if (frame.type == OL_FRAME_ADAPTER_FACTS && ol_wire_get_facts(&r, facts))
            result = 1;
        else if (frame.type == OL_FRAME_FAILED && ol_wire_get_error(&r, error))
            result = 0;
    } else {
        lost_error(error);
    }
    lora_session_forget(tag);
    return result;
}

bool lora_text_operation(uint16 type, const void *bytes, Size length, const ol_wire_text_op *op,
                         StringInfo out, ol_error *error)
{
    const uint8 *payload;
    ol_frame frame;
    ol_buf *buf;
    uint64 tag;
    bool good = false;

    if (!lora_session_ready(error))
        return false;
    tag = lora_session_tag();
    lost_error(error);
    if (lora_session_upload(tag, bytes, length) != LORA_IO_OK)
        return false;
    buf = lora_session_buffer();
    ol_wire_put_text_op(buf, op);
    if (lora_session_send(type, tag, buf->data, (uint32)buf->len) != LORA_IO_OK)
        return false;
    while (answer_to(tag, &frame, &payload) == LORA_IO_OK) {
        ol_reader r = ol_reader_over(payload, frame.length);

        if (frame.type == OL_FRAME_DATA) {
            appendBinaryStringInfo(out, (const char *)payload, (int)frame.length);
            continue;
        }
        good = frame.type == OL_FRAME_END;
        if (!good && !(frame.type == OL_FRAME_FAILED && ol_wire_get_error(&r, error)))
            ol_fail(error, OL_INTERNAL, "the openlora engine sent an unexpected frame");
        break;
    }
    lora_session_forget(tag);
    return good;
}
