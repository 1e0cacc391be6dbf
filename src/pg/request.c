/* request.c: see request.h. */
#include "request.h"

#include "access.h"
#include "ledger.h"
#include "receipt.h"
#include "session.h"
#include "utf8.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "wire/message.h"

#define BYTES_PER_TOKEN 4 /* about; only what is reserved depends on it, not what is charged */

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
    bool sent; /* once at least: the worker sees to its receipt */
    int seen;  /* token events taken; a retry repeats them and they are skipped */
    LoraResult result;
    LoraToken *tokens, **tokens_end, *next;
};

/* Requests that have not ended. One whose tag is not live any more (its transaction
 * ended, or the engine was lost) is not found by it. */
static LoraRequest **flying;
static int n_flying, max_flying;
static uint64 n_ended;

static void note_flying(LoraRequest *request)
{
    if (n_flying == max_flying) {
        int max = max_flying ? 2 * max_flying : 16;

        if (flying)
            flying = repalloc(flying, sizeof(*flying) * (Size)max);
        else
            flying = MemoryContextAlloc(TopMemoryContext, sizeof(*flying) * (Size)max);
        max_flying = max;
    }
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

static LoraRequest *find_flying(uint64 tag)
{
    for (int i = 0; i < n_flying; i++)
        if (flying[i]->tag == tag)
            return lora_session_is_live(tag) ? flying[i] : NULL;
    return NULL;
}

/* -- sending --------------------------------------------------------------------------------- */

/* What was announced and never sent has a receipt, too. */
static void end_announcement(LoraRequest *request)
{
    if (request->announced.number == 0 || request->sent)
        return;
    request->sent = true;
    request->announcement->outcome = OL_OUTCOME_CANCELLED;
    lora_ledger_put(request->announcement);
}

static void end_request(LoraRequest *request)
{
    end_announcement(request);
    request->ended = true;
    n_ended++;
    lora_quota_end(request->claim);
    lora_session_forget(request->tag);
    forget_flying(request);
}

static void fail_request(LoraRequest *request, const ol_error *error)
{
    request->failed = true;
    request->error = *error;
    end_request(request);
}

/* Its memory goes: by lora_request_free, the end of the query, or an error. */
static void at_end_of_memory(void *arg)
{
    LoraRequest *request = arg;

    if (!request->ended && lora_session_is_live(request->tag))
        lora_session_cancel(request->tag);
    end_announcement(request);
    lora_quota_end(request->claim);
    forget_flying(request);
}

/* What is left of statement_timeout: work that nobody will see need not be done. */
static uint32 time_left(void)
{
    long left;

    if (!get_timeout_active(STATEMENT_TIMEOUT))
        return 0;
    left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
                                           get_timeout_finish_time(STATEMENT_TIMEOUT));
    return (uint32)Max(left, 1);
}

static void send_request(LoraRequest *request)
{
    const LoraSpec *spec = &request->spec;
    ol_adapter_use adapters[OL_MAX_REQUEST_ADAPTERS];
    LoraMeter meter;
    ol_request wire = {
        .task = spec->task,
        .quiet = !request->keep_tokens,
        .prompt = {spec->prompt, spec->prompt_len},
        .completion = {spec->completion, spec->completion_len},
        .n_adapters = spec->n_adapters,
        .adapters = adapters,
        .sampling = spec->sampling,
        .tenant = GetUserId(),
        .tenant_weight = (float)lora_tenant_weight,
        .priority = lora_priority,
        .timeout_ms = time_left(),
        .meter = {(const char *)&meter, request->result.inference ? sizeof(meter) : 0},
        .meter_salt = request->result.salt};
    ol_buf *buf;

    for (int i = 0; i < spec->n_adapters; i++) {
        adapters[i].digest = spec->adapters[i].digest;
        adapters[i].weight = (float)spec->adapters[i].weight;
    }
    if (request->result.inference) {
        lora_meter_fill(&meter, spec, &request->result, request->attempts++);
        meter.announced = request->announcement != NULL;
    }
    request->tag = lora_session_tag();
    request->losses = lora_session_losses();
    if (lora_session_upload(request->tag, spec->prompt, spec->prompt_len) != LORA_IO_OK ||
        lora_session_upload(request->tag, spec->completion, spec->completion_len) != LORA_IO_OK)
        return;
    buf = lora_session_buffer();
    ol_wire_put_request(buf, &wire);
    if (buf->failed)
        ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
    if (lora_session_send(OL_FRAME_REQUEST, request->tag, buf->data, (uint32)buf->len) ==
        LORA_IO_OK)
        request->sent = true;
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

/* When receipts must not be lost unnoticed, of what is metered. Nobody waits for the disk yet,
 * unless there is no room: the engine works meanwhile. */
static bool announce(LoraRequest *request, ol_error *error)
{
    LoraMeter meter;

    if (lora_receipt_durability != LORA_RECEIPTS_SYNC || !request->result.inference)
        return true;
    lora_meter_fill(&meter, &request->spec, &request->result, 0);
    meter.announced = true;
    request->announcement = MemoryContextAlloc(request->context, sizeof(LoraReceipt));
    lora_receipt_begin(&meter, LORA_OUTCOME_ANNOUNCED, request->announcement);
    return lora_ledger_announce(request->announcement, &request->announced, error);
}

LoraRequest *lora_request_start(const LoraSpec *spec, bool keep_tokens, ol_error *error)
{
    MemoryContext context, before;
    LoraRequest *request;
    LoraQuotaClaim claim;
    int64 inference;

    if (!lora_session_ready(error))
        return NULL;
    /* before there is anything to be given back */
    inference = lora_attribution ? lora_next_inference() : 0;
    if (!lora_claim_quotas(spec->adapters, spec->n_adapters,
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
    request->result.inference = inference;
    lora_make_salt(&request->result.salt);
    initStringInfo(&request->result.text);
    MemoryContextSwitchTo(before);
    note_flying(request);
    request->at_end.func = at_end_of_memory;
    request->at_end.arg = request;
    MemoryContextRegisterResetCallback(context, &request->at_end);
    if (!announce(request, error)) {
        lora_request_free(request);
        return NULL;
    }
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
    StringInfoData text;

    if (event->index < request->seen)
        return;
    request->seen = event->index + 1;
    lora_quota_took(request->claim, guess_prompt_tokens(&request->spec) + request->seen);
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
    end_request(request);
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
    case OL_EVENT_USAGE: /* the worker's: no decoder gives it */
        break;
    }
    MemoryContextSwitchTo(before);
}

static void dispatch(const ol_frame *frame, const uint8 *payload)
{
    LoraRequest *target = find_flying(frame->tag);
    ol_error error;

    if (target && frame->type == OL_FRAME_EVENT)
        take_event(target, payload, frame->length);
    else if (target && frame->type == OL_FRAME_FAILED) {
        ol_reader r = ol_reader_over(payload, frame->length);

        if (!ol_wire_get_error(&r, &error))
            ol_fail(&error, OL_INTERNAL, "the openlora engine sent a malformed error");
        fail_request(target, &error);
    }
}

/* One frame for anybody. */
static LoraIo take_frame(bool wait)
{
    ol_frame frame;
    const uint8 *payload;
    LoraIo io = lora_session_receive(&frame, &payload, wait);

    if (io == LORA_IO_OK)
        dispatch(&frame, payload);
    return io;
}

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
        fail_request(request, &error);
    } else if (!lora_session_ready(&error)) {
        fail_request(request, &error);
    } else {
        send_request(request);
    }
}

void lora_request_step(LoraRequest *request)
{
    if (!lora_session_is_live(request->tag))
        lora_request_revive(request);
    else
        (void)take_frame(true);
}

void lora_requests_poll(void)
{
    while (n_flying && take_frame(false) == LORA_IO_OK)
        ;
}

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

bool lora_request_wait(LoraRequest *request, ol_error *error)
{
    while (!request->ended)
        lora_request_step(request);
    return !lora_request_failed(request, error);
}

LoraToken *lora_request_next_token(LoraRequest *request)
{
    LoraToken *token;

    while (!request->next && !request->ended)
        lora_request_step(request);
    token = request->next;
    lora_ledger_await(&request->announced); /* no token leaves before */
    if (token)
        request->next = token->next;
    return token;
}

void lora_request_free(LoraRequest *request)
{
    MemoryContextDelete(request->context);
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

/* -- single questions
 * ----------------------------------------------------------------------------------- */

/* Waits for a frame of the tag; others go where they belong. */
static LoraIo answer_to(uint64 tag, ol_frame *frame, const uint8 **payload)
{
    for (;;) {
        LoraIo io = lora_session_receive(frame, payload, true);

        if (io != LORA_IO_OK || frame->tag == tag)
            return io;
        dispatch(frame, *payload);
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

/* The answer to what has just been sent: DATA* into `out`, END. */
static bool collect_answer(uint64 tag, StringInfo out, ol_error *error)
{
    const uint8 *payload;
    ol_frame frame;

    lost_error(error);
    while (answer_to(tag, &frame, &payload) == LORA_IO_OK) {
        ol_reader r = ol_reader_over(payload, frame.length);

        if (frame.type == OL_FRAME_DATA) {
            appendBinaryStringInfo(out, (const char *)payload, (int)frame.length);
            continue;
        }
        if (frame.type == OL_FRAME_END)
            return true;
        if (frame.type != OL_FRAME_FAILED || !ol_wire_get_error(&r, error))
            ol_fail(error, OL_INTERNAL, "the openlora engine sent an unexpected frame");
        break;
    }
    return false;
}

bool lora_text_operation(uint16 type, const void *bytes, Size length, const ol_wire_text_op *op,
                         StringInfo out, ol_error *error)
{
    ol_buf *buf;
    uint64 tag;
    bool good;

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
    good = collect_answer(tag, out, error);
    lora_session_forget(tag);
    return good;
}

bool lora_ask_stats(uint8 which, StringInfo rows, ol_error *error)
{
    uint64 tag;
    bool good;

    if (!lora_session_ready(error))
        return false;
    tag = lora_session_tag();
    lost_error(error);
    if (lora_session_send(OL_FRAME_STATS, tag, &which, sizeof(which)) != LORA_IO_OK)
        return false;
    good = collect_answer(tag, rows, error);
    lora_session_forget(tag);
    return good;
}
