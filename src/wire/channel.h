/*
 * channel.h: the connection between the worker and its engine process.
 *
 * One shared memory file (memfd) holds two rings: to the engine, then from it. A
 * socket pair carries single bytes that wake a sleeping reader, and its closing tells
 * either side that the other is gone. The worker makes both before it forks; the
 * engine finds them as descriptors named on its command line:
 *
 *   openlora-engine serve --ring-fd N --wake-fd N --model PATH [options]
 *
 * Options of `serve` are ol_engine_options' fields with dashes, and --max-adapter-bytes, the
 * largest upload of an adapter: `openlora-engine serve --help`.
 */
#ifndef OL_WIRE_CHANNEL_H
#define OL_WIRE_CHANNEL_H

#include "wire/ring.h"

#define OL_CHANNEL_TO_ENGINE ((size_t)1 << 20)
#define OL_CHANNEL_FROM_ENGINE ((size_t)1 << 20)

typedef struct ol_channel {
    ol_ring_end out; /* we write */
    ol_ring_end in;  /* we read */
    int wake_fd;     /* our end of the socket pair, non-blocking */
    void *memory;
} ol_channel;

/* The worker's side: makes ring memory and sockets. *ring_fd and *peer_wake_fd go to
 * the engine (without close-on-exec) and are closed by the worker after the fork. */
ol_code ol_channel_create(ol_channel *channel, int *ring_fd, int *peer_wake_fd, ol_error *err);
/* The engine's side, over inherited descriptors. Refuses memory of another size. */
ol_code ol_channel_attach(ol_channel *channel, int ring_fd, int wake_fd, ol_error *err);
void ol_channel_close(ol_channel *channel);

/* Writes a frame and wakes the peer if it sleeps. False: no room now; a byte on wake_fd comes
 * when there is. */
bool ol_channel_send(ol_channel *channel, const ol_frame *frame, const void *payload);
/* 1 a frame, 0 none, -1 corrupt. */
int ol_channel_receive(ol_channel *channel, ol_frame *frame, uint8_t *payload);
/* Before waiting on wake_fd: announces the sleep and looks once more. True when there
 * is nothing to read, so that waiting is safe. */
bool ol_channel_may_sleep(ol_channel *channel);
/* After waiting: takes the wake-up bytes. False when the peer has closed. */
bool ol_channel_woken(ol_channel *channel);
/* Wakes the peer whatever it does. */
void ol_channel_wake(ol_channel *channel);

#endif
