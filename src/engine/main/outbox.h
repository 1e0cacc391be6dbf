/* outbox.h: frames on their way to the worker. What finds no room in the ring waits here, in
 * order. */
#ifndef OL_MAIN_OUTBOX_H
#define OL_MAIN_OUTBOX_H

#include "base/buf.h"
#include "wire/channel.h"
#include "wire/message.h"

typedef struct outbox {
    ol_channel *channel;
    ol_buf waiting; /* frames with their payloads */
    size_t sent;    /* bytes of `waiting` that are out */
    ol_buf payload; /* to encode into */
} outbox;

/* To whom: session, epoch and tag are taken from `to`. The payload is box->payload, which
 * is emptied. */
void outbox_send(outbox *box, const ol_frame *to, ol_frame_type type);
/* Bytes of any length, as DATA frames. */
void outbox_send_data(outbox *box, const ol_frame *to, const void *bytes, size_t len);
/* Moves what waits into the ring as far as there is room; true when nothing waits. */
bool outbox_flush(outbox *box);
/* Bytes that wait. */
size_t outbox_waiting(const outbox *box);
/* Out of memory: frames are lost, and the connection with them. */
bool outbox_failed(const outbox *box);
void outbox_free(outbox *box);

#endif
