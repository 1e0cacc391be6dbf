/* database_worker_table.c: see database_worker_table.h. */
#include "database_worker_table.h"

#include "nodes/pg_list.h"
#include "shared.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#define MAX_FAILURES 5 /* in a row: then it waits to be asked again, unless it is stubborn */
#define FIRST_PAUSE_MS 1000
#define LONGEST_PAUSE_MS 60000

LoraWorkers *lora_workers;

Size lora_database_workers_size(void)
{
    return sizeof(LoraWorkers);
}

void lora_database_workers_startup(LWLock *lock)
{
    bool found;

    lora_workers = ShmemInitStruct("openlora database workers", sizeof(LoraWorkers), &found);
    if (found)
        return;
    memset(lora_workers, 0, sizeof(LoraWorkers));
    lora_workers->lock = lock;
    for (int i = 0; i < LORA_WORKER_KINDS; i++)
        ConditionVariableInit(&lora_workers->progress[i]);
}

ConditionVariable *lora_database_worker_progress(LoraWorkerKind kind)
{
    return &lora_workers->progress[kind];
}

/* -- asking for one ------------------------------------------------------------------------- */

static LoraWorkerEntry *find_entry(LoraWorkerKind kind, Oid database)
{
    for (int i = 0; i < lora_workers->n_entries; i++) {
        LoraWorkerEntry *e = &lora_workers->entries[i];

        if (e->state != LORA_ENTRY_FREE && e->kind == kind && e->database == database)
            return e;
    }
    return NULL;
}

static int first_in(LoraEntryState state)
{
    int i = 0;

    while (i < lora_workers->n_entries && lora_workers->entries[i].state != state)
        i++;
    return i;
}

/* NULL when the table is full. Work goes before appointments. */
static LoraWorkerEntry *make_entry(LoraWorkerKind kind, Oid database)
{
    int i = first_in(LORA_ENTRY_FREE);

    if (i == LORA_MAX_WORKER_ENTRIES)
        i = first_in(LORA_ENTRY_LATER);
    if (i == LORA_MAX_WORKER_ENTRIES)
        return NULL;
    if (i == lora_workers->n_entries)
        lora_workers->n_entries++;
    lora_workers->entries[i] =
        (LoraWorkerEntry){.state = LORA_ENTRY_WANTED, .kind = kind, .database = database};
    return &lora_workers->entries[i];
}

void lora_database_worker_ensure(LoraWorkerKind kind, Oid database)
{
    bool start = false;
    Latch *latch = NULL;
    LoraWorkerEntry *e;

    LWLockAcquire(lora_workers->lock, LW_EXCLUSIVE);
    e = find_entry(kind, database);
    if (!e) {
        e = make_entry(kind, database);
        start = e != NULL;
    } else if (e->state == LORA_ENTRY_LATER) {
        e->state = LORA_ENTRY_WANTED;
        e->not_before = 0;
        start = true;
    } else if (e->state == LORA_ENTRY_RUNNING) {
        latch = &ProcGlobal->allProcs[e->procno].procLatch;
    }
    if (e)
        e->work = true;
    LWLockRelease(lora_workers->lock);
    if (latch)
        SetLatch(latch);
    if (start)
        (void)lora_wake_worker();
    if (!e)
        ereport(LOG, (errmsg("openlora keeps no more than %d workers of databases",
                             LORA_MAX_WORKER_ENTRIES)));
}

/* -- failures, and databases that are dropped ------------------------------------------------ */

void lora_worker_failed(LoraWorkerEntry *e)
{
    int pause = FIRST_PAUSE_MS;

    for (int i = 0; i < e->failures && pause < LONGEST_PAUSE_MS; i++)
        pause *= 2;
    e->failures++;
    e->pid = 0;
    e->state = e->failures < MAX_FAILURES || lora_worker_traits[e->kind].stubborn
                   ? LORA_ENTRY_WANTED
                   : LORA_ENTRY_FREE;
    e->not_before =
        TimestampTzPlusMilliseconds(GetCurrentTimestamp(), Min(pause, LONGEST_PAUSE_MS));
}

void lora_worker_appointments_now(void)
{
    LWLockAcquire(lora_workers->lock, LW_EXCLUSIVE);
    for (int i = 0; i < lora_workers->n_entries; i++)
        if (lora_workers->entries[i].state == LORA_ENTRY_LATER)
            lora_workers->entries[i].not_before = 0;
    LWLockRelease(lora_workers->lock);
}

List *lora_worker_wanted_databases(void)
{
    Oid *databases = palloc(sizeof(Oid) * LORA_MAX_WORKER_ENTRIES);
    List *list = NIL;
    int n = 0;

    LWLockAcquire(lora_workers->lock, LW_SHARED);
    for (int i = 0; i < lora_workers->n_entries; i++)
        if (lora_workers->entries[i].state == LORA_ENTRY_WANTED ||
            lora_workers->entries[i].state == LORA_ENTRY_LATER)
            databases[n++] = lora_workers->entries[i].database;
    LWLockRelease(lora_workers->lock);
    while (n > 0)
        list = lappend_oid(list, databases[--n]);
    return list;
}

void lora_worker_forget(Oid database)
{
    LWLockAcquire(lora_workers->lock, LW_EXCLUSIVE);
    for (int i = 0; i < lora_workers->n_entries; i++)
        if ((lora_workers->entries[i].state == LORA_ENTRY_WANTED ||
             lora_workers->entries[i].state == LORA_ENTRY_LATER) &&
            lora_workers->entries[i].database == database)
            lora_workers->entries[i].state = LORA_ENTRY_FREE;
    LWLockRelease(lora_workers->lock);
}
