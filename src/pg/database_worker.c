/*
 * database_worker.c: inside a worker of one database: see database_worker.h. Which there are is
 * in database_worker_table.c, how they are started in database_worker_start.c.
 */
#include "database_worker_table.h"

#include "access/xact.h"
#include "commands/extension.h"
#include "ledger.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "queue.h"
#include "shared.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

static int ledgers = LORA_LANES;

const LoraWorkerTraits lora_worker_traits[LORA_WORKER_KINDS] = {
    [LORA_WORKER_QUEUE] = {.name = "openlora queue worker",
                           .limit = &lora_queue_workers,
                           .needs_engine = true,
                           .needs_extension = true,
                           .everywhere = true,
                           .main = lora_queue_worker},
    [LORA_WORKER_LEDGER] = {.name = "openlora ledger",
                            .limit = &ledgers,
                            .stubborn = true,
                            .main = lora_ledger_worker},
};

#define RETRY_MS 1000

static LoraWorkerEntry *mine;
static TimestampTz appointment;

/* Takes the place that was made for it, unless another worker has it. */
static bool attach(int i, Oid database)
{
    LoraWorkerEntry *e = &lora_workers->entries[i];
    bool good;

    LWLockAcquire(lora_workers->lock, LW_EXCLUSIVE);
    good = (e->state == LORA_ENTRY_STARTING || e->state == LORA_ENTRY_WANTED) &&
           e->database == database;
    if (good) {
        e->state = LORA_ENTRY_RUNNING;
        e->work = true;
        e->leave = false;
        e->pid = MyProcPid;
        e->procno = (int)(MyProc - ProcGlobal->allProcs);
    }
    LWLockRelease(lora_workers->lock);
    mine = good ? e : NULL;
    return good;
}

/* It is ending with its work undone, by an error or because somebody wants it to. */
static void detach(int code, Datum arg)
{
    if (!mine)
        return;
    LWLockAcquire(lora_workers->lock, LW_EXCLUSIVE);
    if (mine->state == LORA_ENTRY_RUNNING && mine->pid == MyProcPid)
        lora_worker_failed(mine);
    LWLockRelease(lora_workers->lock);
    mine = NULL;
    (void)lora_wake_worker();
}

/* Ends orderly, unless work was asked for in the meantime. */
static bool take_leave(void)
{
    bool leaves;

    LWLockAcquire(lora_workers->lock, LW_EXCLUSIVE);
    leaves = !mine->work;
    if (leaves) {
        mine->state = appointment ? LORA_ENTRY_LATER : LORA_ENTRY_FREE;
        mine->not_before = appointment;
        mine->pid = 0;
    }
    LWLockRelease(lora_workers->lock);
    if (leaves) {
        mine = NULL;
        (void)lora_wake_worker(); /* another may have waited for the place */
    }
    return leaves;
}

void lora_database_worker_appoint(TimestampTz when)
{
    appointment = when;
}

void lora_database_worker_when_ready(void)
{
    LWLockAcquire(lora_workers->lock, LW_EXCLUSIVE);
    mine->state = LORA_ENTRY_WANTED;
    mine->pid = 0;
    mine->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), RETRY_MS);
    LWLockRelease(lora_workers->lock);
    mine = NULL;
    (void)lora_wake_worker();
}

bool lora_database_worker_asked(void)
{
    bool asked;

    LWLockAcquire(lora_workers->lock, LW_EXCLUSIVE);
    asked = mine->work;
    mine->work = false;
    LWLockRelease(lora_workers->lock);
    return asked;
}

void lora_database_worker_well(void)
{
    LWLockAcquire(lora_workers->lock, LW_EXCLUSIVE);
    mine->failures = 0;
    LWLockRelease(lora_workers->lock);
}

static bool has_news(bool *leave)
{
    bool news;

    LWLockAcquire(lora_workers->lock, LW_SHARED);
    news = mine->work;
    *leave = mine->leave;
    LWLockRelease(lora_workers->lock);
    return news;
}

static void handle_interrupts(void)
{
    CHECK_FOR_INTERRUPTS();
    if (!ConfigReloadPending)
        return;
    ConfigReloadPending = false;
    ProcessConfigFile(PGC_SIGHUP);
}

bool lora_database_worker_wait(bool idle, long timeout_ms)
{
    bool leave;
    int event;

    handle_interrupts();
    if (has_news(&leave))
        return true;
    if (idle && leave)
        return !take_leave();
    if (idle)
        timeout_ms = lora_worker_idle_time;
    event =
        WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (timeout_ms >= 0 ? WL_TIMEOUT : 0),
                  timeout_ms, lora_wait_event());
    ResetLatch(MyLatch);
    handle_interrupts();
    if (idle && (event & WL_TIMEOUT) && !(event & WL_LATCH_SET))
        return !take_leave();
    return true;
}

static bool has_extension(void)
{
    bool has;

    StartTransactionCommand();
    PushActiveSnapshot(GetTransactionSnapshot());
    has = OidIsValid(get_extension_oid("openlora", true));
    PopActiveSnapshot();
    CommitTransactionCommand();
    return has;
}

void lora_database_worker_main(Datum arg)
{
    LoraWorkerKind kind;
    Oid database;

    memcpy(&database, MyBgworkerEntry->bgw_extra, sizeof(Oid));
    pqsignal(SIGTERM, die);
    pqsignal(SIGHUP, SignalHandlerForConfigReload);
    BackgroundWorkerUnblockSignals();
    BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
    if (!attach(DatumGetInt32(arg), database))
        proc_exit(0);
    before_shmem_exit(detach, 0);
    kind = mine->kind;
    do {
        (void)lora_database_worker_asked();
        if (!lora_worker_traits[kind].needs_extension || has_extension())
            lora_worker_traits[kind].main();
    } while (mine && !take_leave());
    proc_exit(0);
}
