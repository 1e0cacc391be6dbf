/*
 * session.h: a backend's connection to the engine, through the worker.
 *
 * One DSM segment with two rings (link.h), made at the first call and kept for the life of the
 * backend; made anew when the worker has restarted. Requests in flight are known by
 * tag. When the transaction or a subtransaction aborts, all tags begun in it are
 * cancelled; should that not be possible at once, the session is given up, which the
 * worker takes for the end of all its requests.
 */
#ifndef LORA_SESSION_H
#define LORA_SESSION_H

#include "lora_pg.h"

#include "wire/message.h"

extern void lora_session_install_hooks(void);

/* Waits until there is a worker with an engine that is ready, at most
 * openlora.engine_timeout. False with an error when there will be none. */
extern bool lora_session_ready(ol_error *error);
/* That engine, which what is sent from now on goes to, as it was then. */
extern const ol_engine_info *lora_session_engine(void);

/* In a worker whose requests outlive the transactions that they were begun in: tags then end
 * by their owner's word alone. */
extern bool lora_session_outlives;

/* A new tag, live until lora_session_forget or the end of its transaction. */
extern uint64 lora_session_tag(void);
extern bool lora_session_is_live(uint64 tag);
extern void lora_session_forget(uint64 tag);
/* Tells the engine to drop the tag, and forgets it. */
extern void lora_session_cancel(uint64 tag);
/* How often tags were lost with an engine or a session so far; how often any went
 * otherwise than by their owner's word, losses and aborts. */
extern uint64 lora_session_losses(void);
extern uint64 lora_session_deaths(void);

typedef enum LoraIo {
    LORA_IO_OK,
    LORA_IO_LOST, /* the worker or an engine went away: tags are gone, see lora_session_is_live */
    LORA_IO_NONE, /* nothing there, and no wait was wanted */
} LoraIo;

/* Sends a frame, waiting for room. */
extern LoraIo lora_session_send(uint16 type, uint64 tag, const void *payload, uint32 length);
/* Sends bytes in DATA frames; the frame that uses them is to follow, and wakes the worker. */
extern LoraIo lora_session_upload(uint64 tag, const void *bytes, Size length);
/* The next frame, waiting for it if `wait`; the payload lives until the next call. */
extern LoraIo lora_session_receive(ol_frame *frame, const uint8 **payload, bool wait);
/* An encoding buffer that the session owns; emptied. */
extern ol_buf *lora_session_buffer(void);

#endif
