/*
 * route_internal.h: the worker's sessions, as the files of route.h share them.
 *
 *   route.c           frames both ways: whose turn it is, and which engine they are meant for
 *   route_sessions.c  sessions: attached, held, closed
 *   route_deliver.c   frames to backends, kept while their rings have no room
 *
 * Each open session has a frame in hand at most (read from its ring, waiting for room
 * in the engine's) and a list of replies that its ring had no room for. The list is
 * bounded: a backend that stops reading while its request produces more than
 * MAX_PENDING is detached, and finds its session closed.
 */
#ifndef LORA_ROUTE_INTERNAL_H
#define LORA_ROUTE_INTERNAL_H

#include "route.h"

#include "link.h"
#include "shared.h"

typedef struct RoutePending {
    struct RoutePending *next;
    ol_frame frame;
    uint8 payload[FLEXIBLE_ARRAY_MEMBER];
} RoutePending;

typedef struct RouteSession {
    bool open;
    bool ending; /* closed, but the engine has not been told yet */
    uint32 epoch;
    bool unwoken; /* frames were put since it was woken */
    dsm_segment *segment;
    LoraLink link;
    RoutePending *held; /* from it, waiting for room in the ring to the engine; or NULL */
    uint32 told_lost;   /* the last generation that it knows is lost */
    RoutePending *pending, **pending_end;
    Size pending_bytes;
} RouteSession;

extern RouteSession *route_sessions; /* by slot; NULL before the first */
extern int route_n_used;             /* slots that ever had a session: the first ones */

/* -- sessions ------------------------------------------------------------------------------ */

/* The frame in hand, or the next of its link: 1, 0 when there is none, -1 when it is over. */
extern int route_next_frame(RouteSession *s, ol_frame *frame, const uint8 **payload);
/* It is done with the frame in hand. */
extern void route_drop_held(RouteSession *s);
/* What the backend has sent, and the engine will not have. (One that goes on sending does not
 * know yet; it is not waited for.) */
extern void route_refuse_unread(RouteSession *s);
/* Ends the session; the slot is free for another. */
extern void route_detach(EngineProcess *engine, int slot);
/* The engine could not be told of its end, for want of room: tries again. */
extern void route_tell_end_again(EngineProcess *engine, int slot);
/* Somebody may wait for a slot. */
extern void route_note_opening(void);

/* -- to backends --------------------------------------------------------------------------- */

/* A copy, to be freed by pfree. */
extern RoutePending *route_keep(const ol_frame *frame, const void *payload);
/* False when the backend is gone or too far behind. */
extern bool route_deliver(RouteSession *s, const ol_frame *frame, const void *payload);
/* Delivers what it can of what was kept; forgets all of it. */
extern void route_flush(RouteSession *s);
extern void route_drop_pending(RouteSession *s);
/* Whose frames were put is woken once, for all of them. */
extern void route_wake(void);

#endif
