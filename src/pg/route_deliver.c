/* route_deliver.c: frames to backends: see route_internal.h. */
#include "route_internal.h"

#include "utils/memutils.h"

#define MAX_PENDING ((Size)16 << 20)

/* Slots with frames that their backends were not woken for. */
static int *unwoken;
static int n_unwoken;

/* -- waking --------------------------------------------------------------------------------- */

void route_wake(void)
{
    for (int i = 0; i < n_unwoken; i++) {
        RouteSession *s = &route_sessions[unwoken[i]];

        if (s->open)
            lora_link_wake(&s->link);
        s->unwoken = false;
    }
    n_unwoken = 0;
}

static void note_unwoken(RouteSession *s)
{
    if (s->unwoken)
        return;
    if (!unwoken)
        unwoken = MemoryContextAlloc(TopMemoryContext, sizeof(int) * (Size)lora_shared->n_slots);
    unwoken[n_unwoken++] = (int)(s - route_sessions);
    s->unwoken = true;
}

static bool put(RouteSession *s, const ol_frame *frame, const void *payload)
{
    if (!lora_link_put(&s->link, frame, payload))
        return false;
    note_unwoken(s);
    return true;
}

/* -- what waits ----------------------------------------------------------------------------- */

static Size pending_size(const ol_frame *frame)
{
    return offsetof(RoutePending, payload) + frame->length;
}

RoutePending *route_keep(const ol_frame *frame, const void *payload)
{
    RoutePending *p = MemoryContextAlloc(TopMemoryContext, pending_size(frame));

    p->next = NULL;
    p->frame = *frame;
    if (frame->length)
        memcpy(p->payload, payload, frame->length);
    return p;
}

void route_drop_pending(RouteSession *s)
{
    while (s->pending) {
        RoutePending *next = s->pending->next;

        pfree(s->pending);
        s->pending = next;
    }
    s->pending_end = &s->pending;
    s->pending_bytes = 0;
}

void route_flush(RouteSession *s)
{
    while (s->pending && put(s, &s->pending->frame, s->pending->payload)) {
        RoutePending *p = s->pending;

        s->pending = p->next;
        if (!s->pending)
            s->pending_end = &s->pending;
        s->pending_bytes -= pending_size(&p->frame);
        pfree(p);
    }
}

bool route_deliver(RouteSession *s, const ol_frame *frame, const void *payload)
{
    RoutePending *p;

    if (lora_link_left(&s->link))
        return false;
    if (!s->pending && put(s, frame, payload))
        return true;
    if (s->pending_bytes > MAX_PENDING) {
        ereport(LOG, (errmsg("openlora session is too far behind in reading its answers")));
        return false;
    }
    p = route_keep(frame, payload);
    *s->pending_end = p;
    s->pending_end = &p->next;
    s->pending_bytes += pending_size(frame);
    return true;
}
