/*
 * ring.h: a single-producer, single-consumer ring of frames in memory shared by
 * two processes that do not trust each other.
 *
 * The shared memory holds plain data: free-running 64-bit positions and bytes. A
 * side keeps its own position in private memory and treats the other's as a
 * claim: a position that moves backwards, or more than the capacity ahead, is
 * corruption and ends the connection. Frames are copied out before they are
 * looked at, so that the other side cannot change them under the reader.
 *
 * Waking: a reader that finds nothing calls ol_ring_sleep, looks once more, and
 * waits on its wake descriptor; a writer calls ol_ring_wake_needed after a write
 * and, when true, sends a byte on that descriptor. The other way round a writer that
 * finds no room leaves word of it, and the reader calls ol_ring_room_awaited after a
 * read and, when true, sends a byte.
 */
#ifndef OL_WIRE_RING_H
#define OL_WIRE_RING_H

#include "base/status.h"

/* Payload of one frame at most. Longer things travel as several DATA frames. */
#define OL_FRAME_PAYLOAD 65536u

typedef struct ol_frame {
    uint32_t length;  /* of the payload */
    uint16_t type;    /* ol_frame_type */
    uint16_t version; /* OL_WIRE_VERSION */
    uint32_t session; /* set and checked by the worker */
    uint32_t epoch;   /* of the session slot, so that a reused slot is another session */
    uint64_t tag;     /* the request, unique within the session */
} ol_frame;

#define OL_FRAME_MAX (sizeof(ol_frame) + OL_FRAME_PAYLOAD)

typedef struct ol_ring ol_ring; /* lies in shared memory */

/* One side's view. */
typedef struct ol_ring_end {
    ol_ring *ring;
    uint64_t position; /* of this side */
    uint64_t capacity;
} ol_ring_end;

/* Bytes of shared memory for a ring of `capacity` data bytes (a power of two, at
 * least 2 * OL_FRAME_MAX). */
size_t ol_ring_bytes(size_t capacity);
void ol_ring_init(void *memory, size_t capacity);
/* Both ends attach to a ring of a capacity that they know, not one read from it. */
ol_ring_end ol_ring_attach(void *memory, size_t capacity);

/* Writes a whole frame or nothing: false when there is no room, of which the reader then
 * knows (or when the reader's position is corrupt). frame->length bytes of payload. */
bool ol_ring_put(ol_ring_end *end, const ol_frame *frame, const void *payload);
/* Reads one frame into *frame and payload[OL_FRAME_PAYLOAD]: 1 a frame, 0 nothing
 * there, -1 corrupt. */
int ol_ring_get(ol_ring_end *end, ol_frame *frame, uint8_t *payload);

/* Whether there is anything to read. */
bool ol_ring_has(const ol_ring_end *reader);
void ol_ring_sleep(ol_ring_end *reader);
void ol_ring_awake(ol_ring_end *reader);
bool ol_ring_wake_needed(ol_ring_end *writer);
/* Whether the writer found no room and there is plenty now (half of the ring), so that it is
 * to be woken. */
bool ol_ring_room_awaited(ol_ring_end *reader);

#endif
