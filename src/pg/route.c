/*
 * route.c: see route.h.
 *
 * Each open session has a frame in hand at most (read from its queue, waiting for room
 * in the ring) and a list of replies that its queue had no room for. The list is
 * bounded: a backend that stops reading while its request produces more than
 * MAX_PENDING is detached, and finds its session closed.
 */
#include "route.h"

#include "base/log.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "wire/message.h"

#include "link.h"
#include "metering.h"
#include "session.h"

#define MAX_PENDING ((Size)16 << 20)
#define MAX_UNREAD 10000   /* frames: more than a link holds */
#define FRAMES_PER_TURN 16 /* of one session, before others have theirs */

typedef struct Pending {
    struct Pending *next;
    ol_frame frame;
    uint8 payload[FLEXIBLE_ARRAY_MEMBER];
} Pending;

typedef struct Session {
    bool open;
    bool ending; /* closed, but the engine has not been told yet */
    uint32 epoch;
    bool unwoken; /* frames were put since it was woken */
    dsm_segment *segment;
    LoraLink link;
    Pending *held;    /* from it, waiting for room in the ring to the engine; or NULL */
    uint32 told_lost; /* the last generation that it knows is lost */
    Pending *pending, **pending_end;
    Size pending_bytes;
} Session;

static Session *sessions; /* by slot */
static int n_used;        /* slots that ever had a session: the first ones */
static bool is_broken;    /* the engine, since it has started */
static int first_turn;    /* whose frames go first */
static int *unwoken;      /* slots */
static int n_unwoken;

/* -- sessions ----------------------------------------------------------------------------- */

static Size pending_size(const ol_frame *frame)
{
    return offsetof(Pending, payload) + frame->length;
}

static Pending *make_pending(const ol_frame *frame, const void *payload)
{
    Pending *p = MemoryContextAlloc(TopMemoryContext, pending_size(frame));

    p->next = NULL;
    p->frame = *frame;
    if (frame->length)
        memcpy(p->payload, payload, frame->length);
    return p;
}

static void free_held(Session *s)
{
    if (s->held)
        pfree(s->held);
    s->held = NULL;
}

static void free_pending(Session *s)
{
    while (s->pending) {
        Pending *next = s->pending->next;

        pfree(s->pending);
        s->pending = next;
    }
    s->pending_end = &s->pending;
    s->pending_bytes = 0;
}

static void attach(int slot, const LoraSlot *from)
{
    Session *s = &sessions[slot];
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
    n_used = Max(n_used, slot + 1);
    MemoryContextSwitchTo(before);
}

static void note_opening(void)
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
                      .epoch = sessions[slot].epoch};

    sessions[slot].ending = engine->pid && !ol_channel_send(&engine->channel, &frame, NULL);
}

static void tell_end_again(EngineProcess *engine, int slot)
{
    tell_session_end(engine, slot);
    if (!sessions[slot].ending)
        note_opening(); /* somebody may wait for the slot */
}

/* The one in hand, or the next of its link: 1, 0 when there is none, -1 when it is over. */
static int next_frame(Session *s, ol_frame *frame, const uint8 **payload)
{
    static uint8 buffer[OL_FRAME_PAYLOAD];

    *payload = s->held ? s->held->payload : buffer;
    if (!s->held)
        return lora_link_get(&s->link, frame, buffer);
    *frame = s->held->frame;
    return 1;
}

/* What the backend has sent, and the engine will not have. (One that goes on sending does not
 * know yet; it is not waited for.) */
static void refuse_unread(Session *s)
{
    const uint8 *payload;
    ol_frame frame;

    for (int n = 0; n < MAX_UNREAD && next_frame(s, &frame, &payload) > 0; n++) {
        lora_metering_refuse(&frame, payload);
        free_held(s);
    }
}

static void close_session(EngineProcess *engine, int slot)
{
    Session *s = &sessions[slot];

    refuse_unread(s);
    free_pending(s);
    dsm_detach(s->segment); /* the backend sees its queues detached */
    s->open = false;
    tell_session_end(engine, slot);
}

static void detach(EngineProcess *engine, int slot)
{
    Session *s = &sessions[slot];

    close_session(engine, slot);
    set_slot_state(slot, s->epoch, LORA_SLOT_FREE);
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
    if (!sessions) {
        sessions =
            MemoryContextAllocZero(TopMemoryContext, sizeof(Session) * (Size)lora_shared->n_slots);
        unwoken = MemoryContextAlloc(TopMemoryContext, sizeof(int) * (Size)lora_shared->n_slots);
        CurrentResourceOwner = ResourceOwnerCreate(NULL, "openlora worker");
    }
    if (!is_anybody_opening())
        return;
    for (int i = 0; i < lora_shared->n_slots; i++) {
        LoraSlot slot;

        if (!take_opening(i, &slot))
            continue;
        if (sessions[i].open) /* an earlier session of this slot */
            close_session(engine, i);
        if (sessions[i].ending)
            set_slot_state(i, slot.epoch, LORA_SLOT_OPENING); /* not yet */
        else
            attach(i, &slot);
    }
}

/* -- to backends ----------------------------------------------------------------------------- */

/* Whose frames were put is woken once, for all of them. */
static void wake_backends(void)
{
    for (int i = 0; i < n_unwoken; i++) {
        Session *s = &sessions[unwoken[i]];

        if (s->open)
            lora_link_wake(&s->link);
        s->unwoken = false;
    }
    n_unwoken = 0;
}

static bool put(Session *s, const ol_frame *frame, const void *payload)
{
    if (!lora_link_put(&s->link, frame, payload))
        return false;
    if (!s->unwoken)
        unwoken[n_unwoken++] = (int)(s - sessions);
    s->unwoken = true;
    return true;
}

/* False when the backend is gone or too far behind. */
static bool deliver(Session *s, const ol_frame *frame, const void *payload)
{
    Pending *p;

    if (lora_link_left(&s->link))
        return false;
    if (!s->pending && put(s, frame, payload))
        return true;
    if (s->pending_bytes > MAX_PENDING) {
        ereport(LOG, (errmsg("openlora session is too far behind in reading its answers")));
        return false;
    }
    p = make_pending(frame, payload);
    *s->pending_end = p;
    s->pending_end = &p->next;
    s->pending_bytes += pending_size(frame);
    return true;
}

static void flush_pending(Session *s)
{
    while (s->pending && put(s, &s->pending->frame, s->pending->payload)) {
        Pending *p = s->pending;

        s->pending = p->next;
        if (!s->pending)
            s->pending_end = &s->pending;
        s->pending_bytes -= pending_size(&p->frame);
        pfree(p);
    }
}

/* -- frames for the worker itself ---------------------------------------------------------------
 */

static bool take_info(ol_reader *r)
{
    ol_engine_info info;

    if (!ol_wire_get_info(r, &info))
        return false;
    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    lora_shared->info = info;
    lora_shared->info_at = GetCurrentTimestamp();
    LWLockRelease(lora_shared->lock);
    ConditionVariableBroadcast(&lora_shared->changed);
    return true;
}

static bool is_loading(void)
{
    bool loading;

    LWLockAcquire(lora_shared->lock, LW_SHARED);
    loading = lora_shared->engine == LORA_ENGINE_LOADING;
    LWLockRelease(lora_shared->lock);
    return loading;
}

static void take_log(ol_reader *r)
{
    uint8 level = ol_get_u8(r);
    int length = (int)ol_reader_left(r);

    ereport(level >= OL_LOG_ERROR  ? WARNING
            : level >= OL_LOG_INFO ? LOG
                                   : DEBUG1,
            (errmsg_internal("openlora engine: %.*s", length > 1000 ? 1000 : length,
                             (const char *)r->data + r->pos)));
}

static bool own_frame(EngineProcess *engine, const ol_frame *frame, const uint8 *payload)
{
    ol_reader r = ol_reader_over(payload, frame->length);
    ol_error error;

    switch (frame->type) {
    case OL_FRAME_PROGRESS:
        LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
        lora_shared->progress_done = ol_get_u64(&r);
        lora_shared->progress_total = ol_get_u64(&r);
        LWLockRelease(lora_shared->lock);
        return !r.bad;
    case OL_FRAME_INFO:
        if (!take_info(&r))
            return false;
        if (is_loading()) {
            engine_publish(LORA_ENGINE_READY, NULL);
            engine->failures = 0;
            ereport(LOG, (errmsg("openlora engine is ready")));
        }
        return true;
    case OL_FRAME_BROKEN:
        if (!ol_wire_get_error(&r, &error))
            return false;
        engine_publish(LORA_ENGINE_BROKEN, &error);
        ereport(LOG, (errmsg("openlora engine could not load the model: %s", error.message),
                      error.detail[0] ? errdetail("%s", error.detail) : 0,
                      error.hint[0] ? errhint("%s", error.hint) : 0));
        return true;
    case OL_FRAME_LOG:
        take_log(&r);
        return true;
    default:
        return false;
    }
}

/* -- moving
 * ---------------------------------------------------------------------------------------- */

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
            if (!own_frame(engine, &frame, payload))
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
        if (sessions[slot].open && sessions[slot].epoch == frame.epoch &&
            !deliver(&sessions[slot], &frame, payload))
            detach(engine, slot);
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
static bool tell_lost(Session *s, uint32 generation)
{
    ol_frame frame = {.type = OL_FRAME_LOST, .version = OL_WIRE_VERSION, .tag = generation};

    if (s->told_lost == generation)
        return true;
    s->told_lost = generation;
    return deliver(s, &frame, "");
}

static bool forward(EngineProcess *engine, int slot, const ol_frame *frame, const uint8 *payload)
{
    ol_frame header = *frame;

    header.session = (uint32)slot + 1;
    header.epoch = sessions[slot].epoch;
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
    Session *s = &sessions[slot];
    const uint8 *payload;
    ol_frame frame;
    int got = next_frame(s, &frame, &payload);

    if (got <= 0)
        return got;
    if (frame.session != generation) {
        lora_metering_refuse(&frame, payload);
        if (!tell_lost(s, frame.session))
            return -1;
    } else if (!forward(engine, slot, &frame, payload)) {
        if (!s->held)
            s->held = make_pending(&frame, payload);
        return 0; /* the ring is full: later */
    }
    free_held(s);
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

bool route_move(EngineProcess *engine)
{
    int n = n_used;
    uint32 generation;
    bool good = from_engine(engine);

    wake_backends();
    if (!good)
        return false;
    generation = ready_generation(engine);
    first_turn = n ? (first_turn + 1) % n : 0;
    for (int i = 0; i < n; i++) {
        int slot = (first_turn + i) % n;

        if (sessions[slot].ending)
            tell_end_again(engine, slot);
        if (!sessions[slot].open)
            continue;
        flush_pending(&sessions[slot]);
        if (!from_backend(engine, slot, generation))
            detach(engine, slot);
    }
    wake_backends();
    return true;
}

/* What the engine wrote before its end is there still. */
void route_last_frames(EngineProcess *engine)
{
    (void)from_engine(engine);
    is_broken = false;
    wake_backends();
    lora_metering_lost();
}

void route_end(void)
{
    for (int i = 0; i < n_used; i++)
        if (sessions[i].open)
            refuse_unread(&sessions[i]);
}

void route_engine_lost(void)
{
    uint32 generation;

    LWLockAcquire(lora_shared->lock, LW_SHARED);
    generation = lora_shared->generation;
    LWLockRelease(lora_shared->lock);
    for (int i = 0; sessions && i < lora_shared->n_slots; i++) {
        if (sessions[i].ending) {
            sessions[i].ending = false;
            note_opening();
        }
        if (sessions[i].open)
            (void)tell_lost(&sessions[i], generation);
    }
    wake_backends();
}
