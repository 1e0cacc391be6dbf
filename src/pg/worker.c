/* worker.c: see worker.h. The loop: look after the engine, attach, move, wait. */
#include "worker.h"

#include "database_worker.h"
#include "engine_process.h"
#include "ledger.h"
#include "libpq/pqsignal.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "quota.h"
#include "route.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procsignal.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "wire/message.h"
#if PG_VERSION_NUM >= 170000
#include "utils/wait_event.h"
#else
#include "pgstat.h"
#endif

static EngineProcess engine = {.last_frames = route_last_frames};

static volatile sig_atomic_t has_child_ended;

static void child_ended(SIGNAL_ARGS)
{
    int saved = errno;

    has_child_ended = true;
    SetLatch(MyLatch);
    errno = saved;
}

static void announce(void)
{
    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    lora_shared->worker_pid = MyProcPid;
    lora_shared->worker_procno = (int)(MyProc - ProcGlobal->allProcs);
    lora_shared->engine = LORA_ENGINE_OFF;
    lora_shared->engine_pid = 0;
    for (int i = 0; i < lora_shared->n_slots; i++) /* sessions of an earlier worker */
        if (lora_shared->slots[i].state == LORA_SLOT_OPEN)
            lora_shared->slots[i].state = LORA_SLOT_FREE;
    lora_shared->any_opening = true;
    LWLockRelease(lora_shared->lock);
    ConditionVariableBroadcast(&lora_shared->changed);
}

static void leave(int code, Datum arg)
{
    engine_stop(&engine, code == 0, "the openlora worker is ending");
    route_end();
    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    lora_shared->worker_pid = 0;
    lora_shared->worker_procno = -1;
    lora_shared->engine = LORA_ENGINE_OFF;
    LWLockRelease(lora_shared->lock);
    ConditionVariableBroadcast(&lora_shared->changed);
}

static void look_after_engine(void)
{
    if (ConfigReloadPending) {
        ConfigReloadPending = false;
        ProcessConfigFile(PGC_SIGHUP);
        engine.asked_for = !engine.pid;
        if (engine.pid && engine_settings_changed(&engine)) {
            ereport(LOG, (errmsg("openlora engine is restarted for changed settings")));
            engine_stop(&engine, true, "the openlora engine is restarted for changed settings");
            route_engine_lost();
        }
    }
    if (has_child_ended) {
        has_child_ended = false;
        if (engine_reap(&engine))
            route_engine_lost();
    }
    engine_start_if_due(&engine);
}

/* Asks the engine for a report when lora_status() waits for one. */
static void ask_status(void)
{
    ol_frame frame = {.type = OL_FRAME_STATUS, .version = OL_WIRE_VERSION};
    bool wanted;

    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    wanted = lora_shared->status_wanted;
    lora_shared->status_wanted = false;
    LWLockRelease(lora_shared->lock);
    if (wanted && engine.pid)
        (void)ol_channel_send(&engine.channel, &frame, NULL);
}

/* The set lives as long as the engine process does: making one takes several system calls. */
static WaitEventSet *events_of_engine(void)
{
    static WaitEventSet *set;
    static pid_t made_for = -1;

    if (set && made_for == engine.pid)
        return set;
    if (set)
        FreeWaitEventSet(set);
#if PG_VERSION_NUM >= 170000
    set = CreateWaitEventSet(NULL, 3);
#else
    set = CreateWaitEventSet(TopMemoryContext, 3);
#endif
    AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
    AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
    if (engine.pid)
        AddWaitEventToSet(set, WL_SOCKET_READABLE, engine.channel.wake_fd, NULL, NULL);
    made_for = engine.pid;
    return set;
}

static long sooner(long a, long b)
{
    return a < 0 || (b >= 0 && b < a) ? b : a;
}

static void wait_for_work(void)
{
    WaitEvent event;
    long pause = sooner(engine_pause_left(&engine), lora_quota_write_if_due());

    pause = sooner(pause, lora_database_workers_tend());
    pause = sooner(pause, lora_ledger_tend());
    if (engine.pid && !ol_channel_may_sleep(&engine.channel))
        return;
    WaitEventSetWait(events_of_engine(), pause, &event, 1, lora_wait_event());
    ResetLatch(MyLatch);
    if (engine.pid && !ol_channel_woken(&engine.channel))
        engine_stop_closed(&engine);
}

void lora_worker_main(Datum arg)
{
    MemoryContext loop;

    pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
    pqsignal(SIGHUP, SignalHandlerForConfigReload);
    pqsignal(SIGCHLD, child_ended);
    BackgroundWorkerUnblockSignals();
    announce();
    before_shmem_exit(leave, 0);
    lora_database_workers_begin();
    loop = AllocSetContextCreate(TopMemoryContext, "openlora worker", ALLOCSET_DEFAULT_SIZES);
    MemoryContextSwitchTo(loop);
    while (!ShutdownRequestPending) {
        CHECK_FOR_INTERRUPTS();
        look_after_engine();
        ask_status();
        route_attach_new(&engine);
        if (!route_move(&engine)) {
            ereport(LOG, (errmsg("openlora engine broke the protocol and is ended")));
            engine_stop(&engine, false, "the openlora engine broke the protocol");
            route_engine_lost();
        }
        wait_for_work();
        MemoryContextReset(loop);
    }
    proc_exit(0);
}
