/*
 * database_worker_start.c: starting workers of one database. The openlora worker registers
 * them; as it has no database, `openlora launcher`, a process that ends at once, looks which
 * databases there are.
 */
#include "database_worker_table.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "ledger.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "shared.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define NO_SLOT_MS 5000
#define SUSPICIOUS_FAILURES 2 /* in a row: is there still such a database? */

/* -- in the openlora worker ------------------------------------------------------------------ */

/* Of workers that this process has registered; by entry. */
static BackgroundWorkerHandle *handles[LORA_MAX_WORKER_ENTRIES];

/* This process hears, by its latch, when it has come up and when it is gone. */
static void describe(BackgroundWorker *worker, const char *name, const char *function, int number)
{
    memset(worker, 0, sizeof(*worker));
    snprintf(worker->bgw_name, BGW_MAXLEN, "%s", name);
    snprintf(worker->bgw_type, BGW_MAXLEN, "%s", name);
    snprintf(worker->bgw_library_name, BGW_MAXLEN, "openlora");
    snprintf(worker->bgw_function_name, BGW_MAXLEN, "%s", function);
    worker->bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
    worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
    worker->bgw_restart_time = BGW_NEVER_RESTART;
    worker->bgw_main_arg = Int32GetDatum(number);
    worker->bgw_notify_pid = MyProcPid;
}

static bool launch(bool ask_everywhere)
{
    BackgroundWorkerHandle *handle;
    BackgroundWorker worker;

    describe(&worker, "openlora launcher", "lora_database_launcher_main", ask_everywhere);
    return RegisterDynamicBackgroundWorker(&worker, &handle);
}

/* Takes what an earlier openlora worker had registered for not begun: its handles are
 * lost. Should such a worker come up all the same, one of the two finds the other. */
void lora_database_workers_begin(void)
{
    LWLockAcquire(lora_workers->lock, LW_EXCLUSIVE);
    for (int i = 0; i < lora_workers->n_entries; i++)
        if (lora_workers->entries[i].state == LORA_ENTRY_STARTING)
            lora_workers->entries[i].state = LORA_ENTRY_WANTED;
    LWLockRelease(lora_workers->lock);
    if (!launch(true))
        ereport(WARNING, (errmsg("openlora could not look for queued work: no worker is free"),
                          errhint("Raise max_worker_processes; what is queued waits for the next "
                                  "call of lora_submit or lora_result.")));
}

/* The place of one that ended before it could say so. */
static void look_at_started(int i)
{
    LoraWorkerEntry *e = &lora_workers->entries[i];
    BgwHandleStatus status;
    bool suspicious = false;
    pid_t pid;

    if (!handles[i])
        return;
    status = GetBackgroundWorkerPid(handles[i], &pid);
    if (status != BGWH_STOPPED)
        return;
    pfree(handles[i]);
    handles[i] = NULL;
    LWLockAcquire(lora_workers->lock, LW_EXCLUSIVE);
    if (e->state == LORA_ENTRY_STARTING) {
        lora_worker_failed(e);
        suspicious = e->failures % SUSPICIOUS_FAILURES == 0;
    }
    LWLockRelease(lora_workers->lock);
    if (suspicious)
        (void)launch(false);
}

/* False: there is no room for it now. */
static bool start(int i, const LoraWorkerEntry *wanted)
{
    static bool warned;
    const char *name = lora_worker_traits[wanted->kind].name;
    MemoryContext before = MemoryContextSwitchTo(TopMemoryContext);
    LoraWorkerEntry *e = &lora_workers->entries[i];
    BackgroundWorker worker;
    bool good;

    describe(&worker, name, "lora_database_worker_main", i);
    memcpy(worker.bgw_extra, &wanted->database, sizeof(Oid));
    LWLockAcquire(lora_workers->lock, LW_EXCLUSIVE);
    e->state = LORA_ENTRY_STARTING;
    LWLockRelease(lora_workers->lock);
    if (handles[i])
        pfree(handles[i]);
    handles[i] = NULL;
    good = RegisterDynamicBackgroundWorker(&worker, &handles[i]);
    MemoryContextSwitchTo(before);
    if (good) {
        warned = false;
        return true;
    }
    if (!warned)
        ereport(WARNING, (errmsg("could not start the process \"%s\": no worker is free", name),
                          errhint("Raise max_worker_processes. It is tried again.")));
    warned = true;
    LWLockAcquire(lora_workers->lock, LW_EXCLUSIVE);
    e->state = LORA_ENTRY_WANTED;
    e->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), NO_SLOT_MS);
    LWLockRelease(lora_workers->lock);
    return false;
}

/* Whether there may be one more of the kind; when not, those that are idle are told that
 * others wait. */
static bool has_room(LoraWorkerKind kind)
{
    int n = 0, limit = *lora_worker_traits[kind].limit;

    LWLockAcquire(lora_workers->lock, LW_EXCLUSIVE);
    for (int i = 0; i < lora_workers->n_entries; i++)
        n += lora_workers->entries[i].kind == kind &&
             lora_workers->entries[i].state >= LORA_ENTRY_STARTING;
    for (int i = 0; n >= limit && i < lora_workers->n_entries; i++) {
        LoraWorkerEntry *e = &lora_workers->entries[i];

        if (e->kind == kind && e->state == LORA_ENTRY_RUNNING && !e->leave) {
            e->leave = true;
            SetLatch(&ProcGlobal->allProcs[e->procno].procLatch);
        }
    }
    LWLockRelease(lora_workers->lock);
    return n < limit;
}

/* Milliseconds until the entry has to be looked at again, or -1. */
static long tend(int i)
{
    LoraWorkerEntry e;
    long left;

    look_at_started(i);
    LWLockAcquire(lora_workers->lock, LW_SHARED);
    e = lora_workers->entries[i];
    LWLockRelease(lora_workers->lock);
    if (e.state != LORA_ENTRY_WANTED)
        return -1;
    if ((lora_worker_traits[e.kind].needs_engine && !lora_engine_is_ready()) || !has_room(e.kind))
        return -1; /* a change of these calls this again */
    left = e.not_before ? TimestampDifferenceMilliseconds(GetCurrentTimestamp(), e.not_before) : 0;
    if (left > 0)
        return left;
    return start(i, &e) ? -1 : NO_SLOT_MS;
}

/* Milliseconds until an appointment; when it has come, the entry is wanted. */
static long await_appointment(int i)
{
    LoraWorkerEntry *e = &lora_workers->entries[i];
    long left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), e->not_before);

    if (left > 0)
        return left;
    LWLockAcquire(lora_workers->lock, LW_EXCLUSIVE);
    if (e->state == LORA_ENTRY_LATER)
        e->state = LORA_ENTRY_WANTED;
    LWLockRelease(lora_workers->lock);
    return 0;
}

/* What is kept for less long now may be due. */
static void look_at_settings(void)
{
    static int retention = PG_INT32_MIN;

    if (retention != PG_INT32_MIN && retention != lora_queue_retention)
        lora_worker_appointments_now();
    retention = lora_queue_retention;
}

long lora_database_workers_tend(void)
{
    long next = -1;

    look_at_settings();
    for (int i = 0; i < lora_workers->n_entries; i++) {
        LoraEntryState state = lora_workers->entries[i].state;
        long left;

        /* most often nothing is wanted, and this is called for every frame */
        if (state == LORA_ENTRY_FREE || state == LORA_ENTRY_RUNNING)
            continue;
        left = state == LORA_ENTRY_LATER ? await_appointment(i) : tend(i);
        if (left >= 0 && (next < 0 || left < next))
            next = left;
    }
    return next;
}

/* -- the launcher ----------------------------------------------------------------------------- */

typedef struct Databases {
    List *all, *usable;
} Databases;

static void list_databases(Databases *list)
{
    Relation relation;
    TableScanDesc scan;
    HeapTuple tuple;

    StartTransactionCommand();
    (void)GetTransactionSnapshot();
    relation = table_open(DatabaseRelationId, AccessShareLock);
    scan = table_beginscan_catalog(relation, 0, NULL);
    while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection))) {
        Form_pg_database database = (Form_pg_database)GETSTRUCT(tuple);
        MemoryContext before = MemoryContextSwitchTo(TopMemoryContext);

        list->all = lappend_oid(list->all, database->oid);
        if (database->datallowconn && !database->datistemplate)
            list->usable = lappend_oid(list->usable, database->oid);
        MemoryContextSwitchTo(before);
    }
    table_endscan(scan);
    table_close(relation, AccessShareLock);
    CommitTransactionCommand();
}

/* Of what waits for databases that are dropped, nobody will ever make anything. `waiting` was
 * asked for before the databases, so that none is new. */
static void forget_dropped(const List *waiting, const List *all)
{
    ListCell *cell;

    foreach (cell, waiting) {
        Oid database = lfirst_oid(cell);

        if (list_member_oid(all, database))
            continue;
        lora_ledger_drop(database);
        lora_worker_forget(database);
    }
}

void lora_database_launcher_main(Datum ask_everywhere)
{
    Databases list = {NIL, NIL};
    List *waiting;
    ListCell *cell;

    pqsignal(SIGTERM, die);
    BackgroundWorkerUnblockSignals();
    BackgroundWorkerInitializeConnection(NULL, NULL, 0);
    MemoryContextSwitchTo(TopMemoryContext);
    waiting = list_concat(lora_ledger_databases(), lora_worker_wanted_databases());
    list_databases(&list);
    forget_dropped(waiting, list.all);
    foreach (cell, list.usable)
        for (int kind = 0; DatumGetInt32(ask_everywhere) && kind < LORA_WORKER_KINDS; kind++)
            if (lora_worker_traits[kind].everywhere)
                lora_database_worker_ensure((LoraWorkerKind)kind, lfirst_oid(cell));
    proc_exit(0);
}
