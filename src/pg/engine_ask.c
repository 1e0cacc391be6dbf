/* engine_ask.c: see engine_ask.h. */
#include "engine_ask.h"

#include "adapter_send.h"
#include "request_internal.h"
#include "session.h"

/* Waits for a frame of the tag; others go where they belong. */
static LoraIo answer_to(uint64 tag, ol_frame *frame, const uint8 **payload)
{
    for (;;) {
        LoraIo io = lora_session_receive(frame, payload, true);

        if (io != LORA_IO_OK || frame->tag == tag)
            return io;
        lora_request_dispatch(frame, *payload);
    }
}

static void lost_error(ol_error *error)
{
    ol_fail(error, OL_LOST, "the openlora engine was lost while it answered");
    ol_hint(error, "Try again.");
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
    if (lora_adapter_send(tag, OL_FRAME_ADAPTER_CHECK, reader, NULL) == LORA_IO_OK &&
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

/* The last frame of a question, and its answer; where that does not come `error` is as it was. */
static bool ask(uint16 type, uint64 tag, const void *payload, uint32 length, StringInfo out,
                ol_error *error)
{
    bool good;

    if (lora_session_send(type, tag, payload, length) != LORA_IO_OK)
        return false;
    good = collect_answer(tag, out, error);
    lora_session_forget(tag);
    return good;
}

bool lora_text_operation(uint16 type, const void *bytes, Size length, const ol_wire_text_op *op,
                         StringInfo out, ol_error *error)
{
    ol_buf *buf;
    uint64 tag;

    if (!lora_session_ready(error))
        return false;
    tag = lora_session_tag();
    lost_error(error);
    if (lora_session_upload(tag, bytes, length) != LORA_IO_OK)
        return false;
    buf = lora_session_buffer();
    ol_wire_put_text_op(buf, op);
    return ask(type, tag, buf->data, (uint32)buf->len, out, error);
}

bool lora_ask_stats(uint8 which, StringInfo rows, ol_error *error)
{
    uint64 tag;

    if (!lora_session_ready(error))
        return false;
    tag = lora_session_tag();
    lost_error(error);
    return ask(OL_FRAME_STATS, tag, &which, sizeof(which), rows, error);
}
