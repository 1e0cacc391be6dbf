/* outbox.c: see outbox.h. */
#include "engine/main/outbox.h"

#include <string.h>

static void put(outbox *box, const ol_frame *to, ol_frame_type type, const void *bytes, size_t len)
{
    ol_frame frame = {.length = (uint32_t)len,
                      .type = (uint16_t)type,
                      .version = OL_WIRE_VERSION,
                      .session = to->session,
                      .epoch = to->epoch,
                      .tag = to->tag};

    if (outbox_flush(box) && ol_channel_send(box->channel, &frame, bytes))
        return;
    ol_buf_put(&box->waiting, &frame, sizeof(frame));
    ol_buf_put(&box->waiting, bytes, len);
}

void outbox_send(outbox *box, const ol_frame *to, ol_frame_type type)
{
    if (box->payload.len > OL_FRAME_PAYLOAD)
        box->payload.failed = true; /* nothing we say is that long */
    if (!box->payload.failed)
        put(box, to, type, box->payload.data, box->payload.len);
    ol_buf_reset(&box->payload);
}

void outbox_send_data(outbox *box, const ol_frame *to, const void *bytes, size_t len)
{
    for (size_t at = 0; at < len; at += OL_FRAME_PAYLOAD)
        put(box, to, OL_FRAME_DATA, (const uint8_t *)bytes + at,
            len - at < OL_FRAME_PAYLOAD ? len - at : OL_FRAME_PAYLOAD);
}

/* Where it never runs empty, what was sent must not pile up before what was not. */
static void close_up(outbox *box)
{
    if (box->sent <= box->waiting.len / 2)
        return;
    box->waiting.len -= box->sent;
    memmove(box->waiting.data, box->waiting.data + box->sent, box->waiting.len);
    box->sent = 0;
}

bool outbox_flush(outbox *box)
{
    while (box->sent < box->waiting.len) {
        const uint8_t *at = box->waiting.data + box->sent;
        ol_frame frame;

        memcpy(&frame, at, sizeof(frame));
        if (!ol_channel_send(box->channel, &frame, at + sizeof(frame))) {
            close_up(box);
            return false;
        }
        box->sent += sizeof(frame) + frame.length;
    }
    ol_buf_reset(&box->waiting);
    box->sent = 0;
    return true;
}

size_t outbox_waiting(const outbox *box)
{
    return box->waiting.len - box->sent;
}

bool outbox_failed(const outbox *box)
{
    return box->waiting.failed || box->payload.failed;
}

void outbox_free(outbox *box)
{
    ol_buf_free(&box->waiting);
    ol_buf_free(&box->payload);
}
