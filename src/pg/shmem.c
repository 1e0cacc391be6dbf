/* shmem.c: shared memory is asked for, and made, here: for all who have some. */
#include "shmem.h"

#include "database_worker.h"
#include "ledger.h"
#include "progress.h"
#include "quota.h"
#include "shared.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

static shmem_startup_hook_type prev_startup_hook;
#if PG_VERSION_NUM >= 150000
static shmem_request_hook_type prev_request_hook;
#endif

static void request_shared(void)
{
#if PG_VERSION_NUM >= 150000
    if (prev_request_hook)
        prev_request_hook();
#endif
    RequestAddinShmemSpace(lora_shared_size());
    RequestAddinShmemSpace(lora_quota_shared_size());
    RequestAddinShmemSpace(lora_database_workers_size());
    RequestAddinShmemSpace(lora_ledger_shared_size());
    RequestAddinShmemSpace(lora_progress_size());
    /* LoraShared's, the quotas', the database workers', the receipts' */
    RequestNamedLWLockTranche("openlora", 4);
}

static void startup_shared(void)
{
    if (prev_startup_hook)
        prev_startup_hook();
    LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
    lora_shared_startup();
    lora_quota_startup_shared();
    lora_database_workers_startup(&GetNamedLWLockTranche("openlora")[2].lock);
    lora_ledger_startup_shared();
    lora_progress_startup();
    LWLockRelease(AddinShmemInitLock);
}

void lora_shmem_install_hooks(void)
{
#if PG_VERSION_NUM >= 150000
    prev_request_hook = shmem_request_hook;
    shmem_request_hook = request_shared;
#else
    request_shared();
#endif
    prev_startup_hook = shmem_startup_hook;
    shmem_startup_hook = startup_shared;
}
