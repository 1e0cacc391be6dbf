/* route.c: frames between the sessions and the engine: see route.h and route_internal.h. */
#include "route.h"

#include "engine_report.h"
#include "metering.h"
#include "miscadmin.h"
#include "route_internal.h"
#include "storage/latch.h"

#define FRAMES_PER_TURN 16 /* of one session, before others have theirs */

static bool is_broken; /* the engine, since it has started */
static int first_turn; /* whose frames go first */

/* -- from the engine ------------------------------------------------------------------------ */

static bool take_frames(EngineProcess *engine)
{
    static uint8 payload[OL_FRAME_PAYLOAD];
    ol_frame frame;
    int got;

    while (engine->pid && (got = ol_channel_receive(&engine->channel, &frame, payload)) != 0) {
        int slot = (int)frame.session - 1;

        if (got < 0 || frame.version != OL_WIRE_VERSION ||
            frame.session > (uint32)lora_shared->n_slots)
            return false;
        if (frame.session == 0) {
            if (!engine_report_take(engine, &frame, payload))
                return false;
            continue;
        }
        /* Before its session hears of the end, as the engine has sent it before. */
        if (frame.type == OL_FRAME_RECEIPT) {
            if (!lora_metering_report(&frame, payload))
                return false;
            continue;
        }
        lora_metering_event(&frame, payload);
        /* A reply to a session that has ended meanwhile is dropped. */
        if (route_sessions[slot].open && route_sessions[slot].epoch == frame.epoch &&
            !route_deliver(&route_sessions[slot], &frame, payload))
            route_detach(engine, slot);
        CHECK_FOR_INTERRUPTS();
    }
    return true;
}

/* Of one that broke the protocol nothing more is taken. */
static bool from_engine(EngineProcess *engine)
{
    is_broken = is_broken || !take_frames(engine);
    return !is_broken;
}

/* -- to the engine -------------------------------------------------------------------------- */

/* Of the engine that takes frames now; 0 when there is none. */
static uint32 ready_generation(const EngineProcess *engine)
{
    uint32 generation;

    LWLockAcquire(lora_shared->lock, LW_SHARED);
    generation =
        lora_shared->engine == LORA_ENGINE_READY && engine->pid ? lora_shared->generation : 0;
    LWLockRelease(lora_shared->lock);
    return generation;
}

/* What is meant for an engine that is gone: the session hears so, once for each of them. (It
 * may have opened just when the others heard it.) */
static bool tell_lost(RouteSession *s, uint32 generation)
{
    ol_frame frame = {.type = OL_FRAME_LOST, .version = OL_WIRE_VERSION, .tag = generation};

    if (s->told_lost == generation)
        return true;
    s->told_lost = generation;
    return route_deliver(s, &frame, "");
}

static bool forward(EngineProcess *engine, int slot, const ol_frame *frame, const uint8 *payload)
{
    ol_frame header = *frame;

    header.session = (uint32)slot + 1;
    header.epoch = route_sessions[slot].epoch;
    header.version = OL_WIRE_VERSION;
    if (!ol_channel_send(&engine->channel, &header, payload))
        return false;
    lora_metering_begin(&header, payload);
    return true;
}

/* One frame of a session: 1, 0 when none can be moved now, -1 when it is over. A backend puts
 * into `session` which engine a frame is meant for. */
static int move_frame(EngineProcess *engine, int slot, uint32 generation)
{
    RouteSession *s = &route_sessions[slot];
    const uint8 *payload;
    ol_frame frame;
    int got = route_next_frame(s, &frame, &payload);

    if (got <= 0)
        return got;
    if (frame.session != generation) {
        lora_metering_refuse(&frame, payload);
        if (!tell_lost(s, frame.session))
            return -1;
    } else if (!forward(engine, slot, &frame, payload)) {
        if (!s->held)
            s->held = route_keep(&frame, payload);
        return 0; /* the ring is full: later */
    }
    route_drop_held(s);
    return 1;
}

/* Reads a session's frames into the ring. False when the session is over. */
static bool from_backend(EngineProcess *engine, int slot, uint32 generation)
{
    for (int n = 0; n < FRAMES_PER_TURN; n++) {
        int moved = move_frame(engine, slot, generation);

        if (moved <= 0)
            return moved == 0;
    }
    SetLatch(MyLatch); /* there may be more */
    return true;
}

/* -- turns ---------------------------------------------------------------------------------- */

bool route_move(EngineProcess *engine)
{
    int n = route_n_used;
    uint32 generation;
    bool good = from_engine(engine);

    route_wake();
    if (!good)
        return false;
    generation = ready_generation(engine);
    first_turn = n ? (first_turn + 1) % n : 0;
    for (int i = 0; i < n; i++) {
        int slot = (first_turn + i) % n;

        if (route_sessions[slot].ending)
            route_tell_end_again(engine, slot);
        if (!route_sessions[slot].open)
            continue;
        route_flush(&route_sessions[slot]);
        if (!from_backend(engine, slot, generation))
            route_detach(engine, slot);
    }
    route_wake();
    return true;
}

/* What the engine wrote before its end is there still. */
void route_last_frames(EngineProcess *engine)
{
    (void)from_engine(engine);
    is_broken = false;
    route_wake();
    lora_metering_lost();
}

void route_end(void)
{
    for (int i = 0; i < route_n_used; i++)
        if (route_sessions[i].open)
            route_refuse_unread(&route_sessions[i]);
}

void route_engine_lost(void)
{
    uint32 generation;

    LWLockAcquire(lora_shared->lock, LW_SHARED);
    generation = lora_shared->generation;
    LWLockRelease(lora_shared->lock);
    for (int i = 0; route_sessions && i < lora_shared->n_slots; i++) {
        if (route_sessions[i].ending) {
            route_sessions[i].ending = false;
            route_note_opening();
        }
        if (route_sessions[i].open)
            (void)tell_lost(&route_sessions[i], generation);
    }
    route_wake();
}
