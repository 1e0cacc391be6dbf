/* shared.c: see shared.h. */
#include "shared.h"

#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/pmsignal.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"
#if PG_VERSION_NUM < 150000
#include "postmaster/autovacuum.h"
#include "postmaster/postmaster.h"
#include "replication/walsender.h"
#endif
#if PG_VERSION_NUM >= 170000
#include "utils/wait_event.h"
#else
#include "pgstat.h"
#endif

LoraShared *lora_shared;

/* Before PostgreSQL 15 shared memory is asked for before MaxBackends is computed. */
int lora_shared_slots(void)
{
#if PG_VERSION_NUM >= 150000
    return MaxBackends;
#else
    return MaxConnections + autovacuum_max_workers + 1 + max_worker_processes + max_wal_senders;
#endif
}

Size lora_shared_size(void)
{
    return add_size(offsetof(LoraShared, slots), mul_size(lora_shared_slots(), sizeof(LoraSlot)));
}

void lora_shared_startup(void)
{
    bool found;

    lora_shared = ShmemInitStruct("openlora", lora_shared_size(), &found);
    if (found)
        return;
    memset(lora_shared, 0, lora_shared_size());
    lora_shared->lock = &GetNamedLWLockTranche("openlora")->lock;
    ConditionVariableInit(&lora_shared->changed);
    lora_shared->n_slots = lora_shared_slots();
    lora_shared->worker_procno = -1;
}

int lora_my_slot(void)
{
#if PG_VERSION_NUM >= 170000
    int number = MyProcNumber;
#else
    int number = MyProc->pgprocno;
#endif

    if (number < 0 || number >= lora_shared->n_slots)
        elog(ERROR, "process number %d has no openlora slot", number);
    return number;
}

bool lora_wake_worker(void)
{
    int procno;

    LWLockAcquire(lora_shared->lock, LW_SHARED);
    procno = lora_shared->worker_pid ? lora_shared->worker_procno : -1;
    LWLockRelease(lora_shared->lock);
    if (procno < 0)
        return false;
    SetLatch(&ProcGlobal->allProcs[procno].procLatch);
    return true;
}

bool lora_engine_is_ready(void)
{
    bool ready;

    LWLockAcquire(lora_shared->lock, LW_SHARED);
    ready = lora_shared->engine == LORA_ENGINE_READY;
    LWLockRelease(lora_shared->lock);
    return ready;
}

bool lora_wait_change(TimestampTz until)
{
    long left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);

    if (left <= 0)
        return false;
    (void)ConditionVariableTimedSleep(&lora_shared->changed, left, lora_wait_event());
    return true;
}

uint32 lora_wait_event(void)
{
#if PG_VERSION_NUM >= 170000
    static uint32 event;

    if (!event)
        event = WaitEventExtensionNew("OpenloraEngine");
    return event;
#else
    return PG_WAIT_EXTENSION;
#endif
}
