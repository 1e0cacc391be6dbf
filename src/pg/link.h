/*
 * link.h: two rings of frames between a backend and the worker, in a DSM segment.
 *
 * Whoever reads is woken by its latch, when the writer says so: after several frames, say.
 * Whoever finds no room is woken when there is plenty again, and not whenever something was
 * read, as with shm_mq. A side that leaves, by whatever way, is seen to have left by the
 * other.
 */
#ifndef LORA_LINK_H
#define LORA_LINK_H

#include "lora_pg.h"

#include "storage/dsm.h"
#include "wire/ring.h"

typedef struct LoraLinkMemory LoraLinkMemory; /* the segment's */

typedef enum LoraLinkSide { LORA_LINK_BACKEND, LORA_LINK_WORKER } LoraLinkSide;

typedef struct LoraLink {
    LoraLinkMemory *memory;
    LoraLinkSide side;
    ol_ring_end out, in;
} LoraLink;

extern Size lora_link_bytes(void);
/* The backend makes it, in a segment of that size; the worker joins. `procno` is the number
 * of the process that calls. */
extern void lora_link_create(LoraLink *link, dsm_segment *segment, int procno);
extern void lora_link_join(LoraLink *link, dsm_segment *segment, int procno);

/* Writes a whole frame, or nothing: false when there is no room now. */
extern bool lora_link_put(LoraLink *link, const ol_frame *frame, const void *payload);
extern void lora_link_wake(LoraLink *link);
/* 1: a frame, with its payload in payload[OL_FRAME_PAYLOAD]; 0: none; -1: it is over. */
extern int lora_link_get(LoraLink *link, ol_frame *frame, uint8 *payload);
/* Whether the other side has left; what it wrote before can still be read. */
extern bool lora_link_left(const LoraLink *link);

#endif
