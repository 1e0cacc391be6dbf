/* route_sessions.c: the worker's sessions: see route_internal.h. */
#include "route_internal.h"

#include "metering.h"
#include "session.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#define MAX_UNREAD 10000 /* frames: more than a link holds */

RouteSession *route_sessions;
int route_n_used;

/* -- the frame in hand ---------------------------------------------------------------------- */

int route_next_frame(RouteSession *s, ol_frame *frame, const uint8 **payload)
{
    static uint8 buffer[OL_FRAME_PAYLOAD];

    *payload = s->held ? s->held->payload : buffer;
    if (!s->held)
        return lora_link_get(&s->link, frame, buffer);
    *frame = s->held->frame;
    return 1;
}

void route_drop_held(RouteSession *s)
{
    if (s->held)
        pfree(s->held);
    s->held = NULL;
}

void route_refuse_unread(RouteSession *s)
{
    const uint8 *payload;
    ol_frame frame;

    for (int n = 0; n < MAX_UNREAD && route_next_frame(s, &frame, &payload) > 0; n++) {
        lora_metering_refuse(&frame, payload);
        route_drop_held(s);
    }
}

/* -- the end -------------------------------------------------------------------------------- */

void route_note_opening(void)
{
    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    lora_shared->any_opening = true;
    LWLockRelease(lora_shared->lock);
    SetLatch(MyLatch);
}

/* Unless the slot has a newer session. */
static void set_slot_state(int slot, uint32 epoch, LoraSlotState state)
{
    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    if (lora_shared->slots[slot].epoch == epoch)
        lora_shared->slots[slot].state = state;
    LWLockRelease(lora_shared->lock);
}

/* When the ring is full, it is told later: until then the slot is not used again. */
static void tell_session_end(EngineProcess *engine, int slot)
{
    ol_frame frame = {.type = OL_FRAME_SESSION_END,
                      .version = OL_WIRE_VERSION,
                      .session = (uint32)slot + 1,
                      .epoch = route_sessions[slot].epoch};

    route_sessions[slot].ending = engine->pid && !ol_channel_send(&engine->channel, &frame, NULL);
}

void route_tell_end_again(EngineProcess *engine, int slot)
{
    tell_session_end(engine, slot);
    if (!route_sessions[slot].ending)
        route_note_opening(); /* somebody may wait for the slot */
}

static void close_session(EngineProcess *engine, int slot)
{
    RouteSession *s = &route_sessions[slot];

    route_refuse_unread(s);
    route_drop_pending(s);
    dsm_detach(s->segment); /* the backend sees that we have left */
    s->open = false;
    tell_session_end(engine, slot);
}

void route_detach(EngineProcess *engine, int slot)
{
    RouteSession *s = &route_sessions[slot];

    close_session(engine, slot);
    set_slot_state(slot, s->epoch, LORA_SLOT_FREE);
}

/* -- the beginning -------------------------------------------------------------------------- */

static void attach(int slot, const LoraSlot *from)
{
    RouteSession *s = &route_sessions[slot];
    dsm_segment *segment = dsm_attach(from->segment);
    MemoryContext before = MemoryContextSwitchTo(TopMemoryContext); /* for the handles */

    if (!segment) { /* the backend has gone meanwhile */
        MemoryContextSwitchTo(before);
        return;
    }
    dsm_pin_mapping(segment);
    memset(s, 0, sizeof(*s));
    s->pending_end = &s->pending;
    s->epoch = from->epoch;
    s->segment = segment;
    lora_link_join(&s->link, segment, lora_my_slot());
    s->open = true;
    route_n_used = Max(route_n_used, slot + 1);
    MemoryContextSwitchTo(before);
}

/* Whether a backend has opened a session in this slot; then it counts as open. */
static bool take_opening(int i, LoraSlot *slot)
{
    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    *slot = lora_shared->slots[i];
    if (slot->state == LORA_SLOT_OPENING)
        lora_shared->slots[i].state = LORA_SLOT_OPEN;
    LWLockRelease(lora_shared->lock);
    return slot->state == LORA_SLOT_OPENING;
}

/* So that the common case, nobody, costs one look. */
static bool is_anybody_opening(void)
{
    bool any;

    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    any = lora_shared->any_opening;
    lora_shared->any_opening = false;
    LWLockRelease(lora_shared->lock);
    return any;
}

void route_attach_new(EngineProcess *engine)
{
    if (!route_sessions) {
        route_sessions = MemoryContextAllocZero(TopMemoryContext,
                                                sizeof(RouteSession) * (Size)lora_shared->n_slots);
        CurrentResourceOwner = ResourceOwnerCreate(NULL, "openlora worker");
    }
    if (!is_anybody_opening())
        return;
    for (int i = 0; i < lora_shared->n_slots; i++) {
        LoraSlot slot;

        if (!take_opening(i, &slot))
            continue;
        if (route_sessions[i].open) /* an earlier session of this slot */
            close_session(engine, i);
        if (route_sessions[i].ending)
            set_slot_state(i, slot.epoch, LORA_SLOT_OPENING); /* not yet */
        else
            attach(i, &slot);
    }
}
