/* request_send.c: what goes to the engine: see request_internal.h. */
#include "request_internal.h"

#include "miscadmin.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#define BYTES_PER_TOKEN 4 /* about; only what is reserved depends on it, not what is charged */

/* Tokens of a text, before it is known. */
static int64 guess_tokens(Size bytes)
{
    return (int64)(bytes / BYTES_PER_TOKEN) + 1;
}

int64 lora_guess_prompt_tokens(const LoraSpec *spec)
{
    return guess_tokens(spec->prompt_len) + guess_tokens(spec->completion_len);
}

/* -- announcing ----------------------------------------------------------------------------- */

bool lora_request_announce(LoraRequest *request, ol_error *error)
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

void lora_request_end_announcement(LoraRequest *request)
{
    if (request->announced.number == 0 || request->sent)
        return;
    request->sent = true;
    request->announcement->outcome = OL_OUTCOME_CANCELLED;
    lora_ledger_put(request->announcement);
}

/* -- sending -------------------------------------------------------------------------------- */

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

void lora_request_send(LoraRequest *request)
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
    request->result.engine = *lora_session_engine();
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
