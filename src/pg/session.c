/* session.c: see session.h. */
#include "session.h"

#include "access/xact.h"
#include "link.h"
#include "lists.h"
#include "shared.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

bool lora_session_outlives;

typedef struct LiveTag {
    uint64 tag;
    uint32 generation; /* of the engine that it was sent to */
    SubTransactionId begun_in;
} LiveTag;

static struct {
    dsm_segment *segment;
    LoraLink link;
    uint32 generation;
    ol_engine_info engine; /* of that generation */
    ol_buf buffer;
    uint8 *payload; /* of the frame that was received last */
} session;

static LiveTag *live;
static int n_live, max_live;
static uint64 last_tag, losses, deaths;

/* -- opening and closing ------------------------------------------------------------------ */

static void close_session(void)
{
    if (!session.segment)
        return;
    dsm_detach(session.segment);
    session.segment = NULL;
    n_live = 0;
    losses++;
    deaths++;
}

static void close_at_exit(int code, Datum arg)
{
    if (!session.segment)
        return;
    close_session();
    (void)lora_wake_worker();
}

static void open_session(void)
{
    static bool exit_hook;
    MemoryContext before = MemoryContextSwitchTo(TopMemoryContext);
    LoraSlot *slot = &lora_shared->slots[lora_my_slot()];

    if (!exit_hook) {
        before_shmem_exit(close_at_exit, 0);
        exit_hook = true;
    }
    if (!session.payload)
        session.payload = palloc(OL_FRAME_PAYLOAD);
    session.segment = dsm_create(lora_link_bytes(), 0);
    dsm_pin_mapping(session.segment);
    lora_link_create(&session.link, session.segment, lora_my_slot());
    MemoryContextSwitchTo(before);
    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    slot->epoch++;
    slot->segment = dsm_segment_handle(session.segment);
    slot->pid = MyProcPid;
    slot->state = LORA_SLOT_OPENING;
    lora_shared->any_opening = true;
    LWLockRelease(lora_shared->lock);
    (void)lora_wake_worker();
}

/* -- tags -------------------------------------------------------------------------------- */

uint64 lora_session_tag(void)
{
    live = lora_list_room(live, n_live, &max_live, sizeof(LiveTag));
    live[n_live].tag = ++last_tag;
    live[n_live].generation = session.generation;
    live[n_live].begun_in = GetCurrentSubTransactionId();
    n_live++;
    return last_tag;
}

bool lora_session_is_live(uint64 tag)
{
    for (int i = 0; i < n_live; i++)
        if (live[i].tag == tag)
            return true;
    return false;
}

void lora_session_forget(uint64 tag)
{
    for (int i = 0; i < n_live; i++)
        if (live[i].tag == tag) {
            live[i] = live[--n_live];
            return;
        }
}

static uint32 generation_of(uint64 tag)
{
    for (int i = 0; i < n_live; i++)
        if (live[i].tag == tag)
            return live[i].generation;
    return session.generation;
}

/* What was sent to an engine is gone with it; what was sent to the next one is not. */
static void forget_generation(uint32 generation)
{
    int kept = 0;

    for (int i = 0; i < n_live; i++)
        if (live[i].generation != generation)
            live[kept++] = live[i];
    n_live = kept;
    losses++;
    deaths++;
}

uint64 lora_session_losses(void)
{
    return losses;
}

uint64 lora_session_deaths(void)
{
    return deaths;
}

/* One try, without waiting. */
static bool send_now(uint16 type, uint64 tag, uint32 generation)
{
    ol_frame frame = {.type = type, .version = OL_WIRE_VERSION, .session = generation, .tag = tag};

    if (!lora_link_put(&session.link, &frame, NULL))
        return false;
    lora_link_wake(&session.link);
    return true;
}

void lora_session_cancel(uint64 tag)
{
    uint32 generation = generation_of(tag);

    lora_session_forget(tag);
    if (session.segment && !send_now(OL_FRAME_CANCEL, tag, generation)) {
        close_session();
        (void)lora_wake_worker();
    }
}

/* -- end of transactions ----------------------------------------------------------------- */

static void cancel_begun_in(SubTransactionId id, bool any)
{
    deaths += n_live > 0;
    for (int i = n_live - 1; i >= 0; i--)
        if (i < n_live && (any || live[i].begun_in == id))
            lora_session_cancel(live[i].tag);
}

static void at_transaction_end(XactEvent event, void *arg)
{
    if (lora_session_outlives)
        return;
    if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PARALLEL_ABORT ||
        event == XACT_EVENT_COMMIT || event == XACT_EVENT_PREPARE)
        cancel_begun_in(InvalidSubTransactionId, true);
}

static void at_subtransaction_end(SubXactEvent event, SubTransactionId id, SubTransactionId parent,
                                  void *arg)
{
    if (event == SUBXACT_EVENT_ABORT_SUB)
        cancel_begun_in(id, false);
    else if (event == SUBXACT_EVENT_COMMIT_SUB)
        for (int i = 0; i < n_live; i++)
            if (live[i].begun_in == id)
                live[i].begun_in = parent;
}

void lora_session_install_hooks(void)
{
    RegisterXactCallback(at_transaction_end, NULL);
    RegisterSubXactCallback(at_subtransaction_end, NULL);
}

/* -- waiting for the engine -------------------------------------------------------------- */

/* What is known now: 1 ready (then the session is the engine's), 0 wait, -1 hopeless (error is
 * filled). */
static int look_at_engine(ol_error *error)
{
    LoraEngineState state;
    ol_error reason;
    uint64 done, total;
    int pid;

    LWLockAcquire(lora_shared->lock, LW_SHARED);
    state = lora_shared->engine;
    reason = lora_shared->engine_error;
    pid = lora_shared->worker_pid;
    if (state == LORA_ENGINE_READY && pid) {
        session.generation = lora_shared->generation;
        session.engine = lora_shared->info;
    }
    done = lora_shared->progress_done;
    total = lora_shared->progress_total;
    LWLockRelease(lora_shared->lock);
    switch (state) {
    case LORA_ENGINE_READY:
        return pid ? 1 : 0;
    case LORA_ENGINE_LOADING:
        ol_fail(error, OL_LOST, "the model is still being loaded");
        if (total)
            ol_detail(error, UINT64_FORMAT " of " UINT64_FORMAT " bytes are done.", done, total);
        ol_hint(error, "Wait, or raise openlora.engine_timeout.");
        return 0;
    case LORA_ENGINE_RESTARTING:
        *error = reason;
        ol_hint(error, "It is being started again; see the server's log.");
        return 0;
    case LORA_ENGINE_BROKEN:
        *error = reason;
        if (!error->hint[0])
            ol_hint(error, "Correct openlora.model, or what else is set for it, and reload the "
                           "configuration.");
        return -1;
    case LORA_ENGINE_OFF:
        break;
    }
    if (pid && !lora_model[0]) {
        ol_fail(error, OL_INVALID, "openlora has no model to serve");
        ol_hint(error, "Set openlora.model and reload the configuration.");
        return -1;
    }
    ol_fail(error, OL_LOST, "the openlora worker is not running");
    ol_hint(error, "If it stays so, max_worker_processes may leave no room for it.");
    return 0;
}

bool lora_session_ready(ol_error *error)
{
    TimestampTz until;
    int state;

    if (!lora_check_preloaded(error))
        return false;
    state = look_at_engine(error);
    if (state == 0) {
        until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), lora_engine_timeout);
        do
            state = look_at_engine(error);
        while (state == 0 && lora_wait_change(until));
        ConditionVariableCancelSleep();
    }
    if (state <= 0)
        return false;
    if (!session.segment)
        open_session();
    return true;
}

const ol_engine_info *lora_session_engine(void)
{
    return &session.engine;
}

/* -- frames ------------------------------------------------------------------------------ */

static void wait_for_link(void)
{
    (void)WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, 0, lora_wait_event());
    ResetLatch(MyLatch);
    CHECK_FOR_INTERRUPTS();
}

static LoraIo lost(void)
{
    close_session();
    return LORA_IO_LOST;
}

/* Unless `more` follows at once, the worker is woken. */
static LoraIo send_frame(uint16 type, uint64 tag, const void *payload, uint32 length, bool more)
{
    ol_frame frame = {.type = type,
                      .version = OL_WIRE_VERSION,
                      .session = generation_of(tag),
                      .tag = tag,
                      .length = length};

    for (;;) {
        if (!session.segment)
            return LORA_IO_LOST;
        if (lora_link_left(&session.link))
            return lost();
        if (lora_link_put(&session.link, &frame, payload))
            break;
        lora_link_wake(&session.link);
        wait_for_link();
    }
    if (!more)
        lora_link_wake(&session.link);
    return LORA_IO_OK;
}

LoraIo lora_session_send(uint16 type, uint64 tag, const void *payload, uint32 length)
{
    return send_frame(type, tag, payload, length, false);
}

LoraIo lora_session_upload(uint64 tag, const void *bytes, Size length)
{
    for (Size at = 0; at < length; at += OL_FRAME_PAYLOAD) {
        Size n = Min(length - at, (Size)OL_FRAME_PAYLOAD);
        LoraIo io = send_frame(OL_FRAME_DATA, tag, (const char *)bytes + at, (uint32)n, true);

        if (io != LORA_IO_OK)
            return io;
    }
    return LORA_IO_OK;
}

LoraIo lora_session_receive(ol_frame *frame, const uint8 **payload, bool wait)
{
    int got;

    for (;;) {
        if (!session.segment)
            return LORA_IO_LOST;
        got = lora_link_get(&session.link, frame, session.payload);
        if (got != 0)
            break;
        if (!wait)
            return LORA_IO_NONE;
        wait_for_link();
    }
    if (got < 0)
        return lost();
    if (frame->type == OL_FRAME_LOST) {
        forget_generation((uint32)frame->tag);
        return LORA_IO_LOST;
    }
    *payload = session.payload;
    return LORA_IO_OK;
}

ol_buf *lora_session_buffer(void)
{
    ol_buf_reset(&session.buffer);
    return &session.buffer;
}
