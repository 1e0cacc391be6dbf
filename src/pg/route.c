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
#include "storage/shm_mq.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "wire/message.h"

#include "ledger.h"
#include "session.h"

#define MAX_PENDING ((Size)16 << 20)
#define FRAMES_PER_TURN 16 /* of one session, before others have theirs */

typedef struct Pending {
    struct Pending *next;
    Size length;
    char bytes[FLEXIBLE_ARRAY_MEMBER];
} Pending;

typedef struct Session {
    bool open;
    bool ending; /* closed, but the engine has not been told yet */
    uint32 epoch;
    dsm_segment *segment;
    shm_mq_handle *from_backend, *to_backend;
    ol_frame *held;   /* in the queue's memory, or NULL */
    uint32 told_lost; /* the last generation that it knows is lost */
    Pending *pending, **pending_end;
    Size pending_bytes;
} Session;

static Session *sessions; /* by slot */
static int first_turn;    /* whose frames go first */

/* -- sessions ----------------------------------------------------------------------------- */

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
    LoraSessionMemory *memory;

    if (!segment) { /* the backend has gone meanwhile */
        MemoryContextSwitchTo(before);
        return;
    }
    dsm_pin_mapping(segment);
    memory = dsm_segment_address(segment);
    memset(s, 0, sizeof(*s));
    s->pending_end = &s->pending;
    s->epoch = from->epoch;
    s->segment = segment;
    shm_mq_set_receiver(lora_session_request_queue(memory), MyProc);
    shm_mq_set_sender(lora_session_reply_queue(memory), MyProc);
    s->from_backend = shm_mq_attach(lora_session_request_queue(memory), segment, NULL);
    s->to_backend = shm_mq_attach(lora_session_reply_queue(memory), segment, NULL);
    s->open = true;
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

static void close_session(EngineProcess *engine, int slot)
{
    Session *s = &sessions[slot];

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

/* False when the backend is gone or too far behind. */
static bool deliver(Session *s, const ol_frame *frame, const void *payload)
{
    shm_mq_iovec parts[2] = {{(const char *)frame, sizeof(*frame)}, {payload, frame->length}};
    Pending *p;

    if (!s->pending) {
#if PG_VERSION_NUM >= 150000
        shm_mq_result result = shm_mq_sendv(s->to_backend, parts, 2, true, true);
#else
        shm_mq_result result = shm_mq_sendv(s->to_backend, parts, 2, true);
#endif

        if (result != SHM_MQ_WOULD_BLOCK)
            return result == SHM_MQ_SUCCESS;
    }
    if (s->pending_bytes > MAX_PENDING) {
        ereport(LOG, (errmsg("openlora session is too far behind in reading its answers")));
        return false;
    }
    p = MemoryContextAlloc(TopMemoryContext,
                           offsetof(Pending, bytes) + sizeof(*frame) + frame->length);
    p->next = NULL;
    p->length = sizeof(*frame) + frame->length;
    memcpy(p->bytes, frame, sizeof(*frame));
    if (frame->length)
        memcpy(p->bytes + sizeof(*frame), payload, frame->length);
    *s->pending_end = p;
    s->pending_end = &p->next;
    s->pending_bytes += p->length;
    return true;
}

static bool flush_pending(Session *s)
{
    while (s->pending) {
        Pending *p = s->pending;
#if PG_VERSION_NUM >= 150000
        shm_mq_result result = shm_mq_send(s->to_backend, p->length, p->bytes, true, true);
#else
        shm_mq_result result = shm_mq_send(s->to_backend, p->length, p->bytes, true);
#endif

        if (result == SHM_MQ_WOULD_BLOCK)
            return true;
        if (result != SHM_MQ_SUCCESS)
            return false;
        s->pending = p->next;
        if (!s->pending)
            s->pending_end = &s->pending;
        s->pending_bytes -= p->length;
        pfree(p);
    }
    return true;
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

/* Before its session hears of the end, as the engine has sent it before. */
static bool take_receipt(ol_reader *r)
{
    LoraReceipt receipt;

    if (!lora_receipt_take(r, &lora_shared->info, &receipt)) /* the info is ours alone to write */
        return false;
    lora_ledger_put(&receipt);
    return true;
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
        return true;
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
    case OL_FRAME_RECEIPT:
        return take_receipt(&r);
    default:
        return false;
    }
}

/* -- moving
 * ---------------------------------------------------------------------------------------- */

static bool from_engine(EngineProcess *engine)
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
        /* A reply to a session that has ended meanwhile is dropped. */
        if (sessions[slot].open && sessions[slot].epoch == frame.epoch &&
            !deliver(&sessions[slot], &frame, payload))
            detach(engine, slot);
        CHECK_FOR_INTERRUPTS();
    }
    return true;
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

/* The next frame of a session into `held`: 1, 0 when there is none, -1 when it is over. */
static int hold_frame(Session *s)
{
    Size length;
    void *data;
    shm_mq_result result = shm_mq_receive(s->from_backend, &length, &data, true);

    if (result != SHM_MQ_SUCCESS)
        return result == SHM_MQ_WOULD_BLOCK ? 0 : -1;
    if (length < sizeof(ol_frame) || length > OL_FRAME_MAX ||
        ((ol_frame *)data)->length != length - sizeof(ol_frame)) {
        ereport(LOG, (errmsg("openlora session sent a malformed frame")));
        return -1;
    }
    s->held = data;
    return 1;
}

static bool forward(EngineProcess *engine, int slot)
{
    Session *s = &sessions[slot];
    ol_frame header = *s->held;

    header.session = (uint32)slot + 1;
    header.epoch = s->epoch;
    header.version = OL_WIRE_VERSION;
    return ol_channel_send(&engine->channel, &header, s->held + 1);
}

/* Reads a session's frames into the ring. A backend puts into `session` which engine a frame is
 * meant for. False when the session is over. */
static bool from_backend(EngineProcess *engine, int slot, uint32 generation)
{
    Session *s = &sessions[slot];

    for (int n = 0; n < FRAMES_PER_TURN; n++) {
        int got = s->held ? 1 : hold_frame(s);

        if (got <= 0)
            return got == 0;
        if (s->held->session != generation) {
            if (!tell_lost(s, s->held->session))
                return false;
        } else if (!forward(engine, slot)) {
            return true; /* the ring is full: later */
        }
        s->held = NULL;
    }
    SetLatch(MyLatch); /* there may be more */
    return true;
}

bool route_move(EngineProcess *engine)
{
    int n = lora_shared->n_slots;
    uint32 generation;

    if (!from_engine(engine))
        return false;
    generation = ready_generation(engine);
    first_turn = (first_turn + 1) % n;
    for (int i = 0; i < n; i++) {
        int slot = (first_turn + i) % n;

        if (sessions[slot].ending)
            tell_end_again(engine, slot);
        if (!sessions[slot].open)
            continue;
        if (!flush_pending(&sessions[slot]) || !from_backend(engine, slot, generation))
            detach(engine, slot);
    }
    return true;
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
}
