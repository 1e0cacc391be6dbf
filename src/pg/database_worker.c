/* database_worker.c: see database_worker.h. */
#include "database_worker.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "commands/extension.h"
#include "libpq/pqsignal.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "queue.h"
#include "shared.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/procsignal.h"
#include "storage/shmem.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define MAX_ENTRIES 1024
#define MAX_FAILURES 5 /* in a row: then it waits to be asked again */
#define RETRY_MS 1000
#define NO_SLOT_MS 5000

/* -- kinds ------------------------------------------------------------------------------- */

typedef struct Kind {
    const char *name;
    int *limit;        /* databases at the same time; 0: off */
    bool needs_engine; /* not started while there is none that is ready */
    void (*main)(void);
} Kind;

static const Kind kinds[LORA_WORKER_KINDS] = {
    [LORA_WORKER_QUEUE] = {"queue", &lora_queue_workers, true, lora_queue_worker},
};

/* -- what is known of workers -------------------------------------------------------------- */

typedef enum EntryState {
    ENTRY_FREE,
    ENTRY_WANTED,   /* nobody has started it yet */
    ENTRY_STARTING, /* registered with the postmaster */
    ENTRY_RUNNING,
} EntryState;

typedef struct Entry {
    EntryState state;
    LoraWorkerKind kind;
    Oid database;
    bool work;  /* asked for since it looked last */
    bool leave; /* others wait for its place: end when idle */
    int pid, procno;
    int failures;
    TimestampTz not_before; /* WANTED: when it may be tried */
} Entry;

typedef struct Workers {
    LWLock *lock; /* as LoraShared's: for copying only, no other lock under it */
    ConditionVariable progress[LORA_WORKER_KINDS];
    int n_entries; /* how many were ever in use */
    Entry entries[MAX_ENTRIES];
} Workers;

static Workers *workers;

Size lora_database_workers_size(void)
{
    return sizeof(Workers);
}

void lora_database_workers_startup(LWLock *lock)
{
    bool found;

    workers = ShmemInitStruct("openlora database workers", sizeof(Workers), &found);
    if (found)
        return;
    memset(workers, 0, sizeof(Workers));
    workers->lock = lock;
    for (int i = 0; i < LORA_WORKER_KINDS; i++)
        ConditionVariableInit(&workers->progress[i]);
}

ConditionVariable *lora_database_worker_progress(LoraWorkerKind kind)
{
    return &workers->progress[kind];
}

static Entry *find_entry(LoraWorkerKind kind, Oid database)
{
    for (int i = 0; i < workers->n_entries; i++) {
        Entry *e = &workers->entries[i];

        if (e->state != ENTRY_FREE && e->kind == kind && e->database == database)
            return e;
    }
    return NULL;
}

/* NULL when the table is full. */
static Entry *make_entry(LoraWorkerKind kind, Oid database)
{
    int i = 0;

    while (i < workers->n_entries && workers->entries[i].state != ENTRY_FREE)
        i++;
    if (i == MAX_ENTRIES)
        return NULL;
    if (i == workers->n_entries)
        workers->n_entries++;
    workers->entries[i] = (Entry){.kind = kind, .database = database};
    return &workers->entries[i];
}

void lora_database_worker_ensure(LoraWorkerKind kind, Oid database)
{
    bool start = false;
    Latch *latch = NULL;
    Entry *e;

    LWLockAcquire(workers->lock, LW_EXCLUSIVE);
    e = find_entry(kind, database);
    if (!e) {
        e = make_entry(kind, database);
        if (e)
            e->state = ENTRY_WANTED;
        start = e != NULL;
    } else if (e->state == ENTRY_RUNNING) {
        latch = &ProcGlobal->allProcs[e->procno].procLatch;
    }
    if (e)
        e->work = true;
    LWLockRelease(workers->lock);
    if (latch)
        SetLatch(latch);
    if (start)
        (void)lora_wake_worker();
    if (!e)
        ereport(LOG, (errmsg("openlora keeps workers for at most %d databases", MAX_ENTRIES)));
}

/* -- starting: in the openlora worker ------------------------------------------------------ */

/* Of workers that this process has registered; by entry. */
static BackgroundWorkerHandle *handles[MAX_ENTRIES];

static void describe(BackgroundWorker *worker, const char *name, const char *function)
{
    memset(worker, 0, sizeof(*worker));
    snprintf(worker->bgw_name, BGW_MAXLEN, "%s", name);
    snprintf(worker->bgw_type, BGW_MAXLEN, "%s", name);
    snprintf(worker->bgw_library_name, BGW_MAXLEN, "openlora");
    snprintf(worker->bgw_function_name, BGW_MAXLEN, "%s", function);
    worker->bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
    worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
    worker->bgw_restart_time = BGW_NEVER_RESTART;
}

/* Takes what an earlier openlora worker had registered for not begun: its handles are
 * lost. Should such a worker come up all the same, one of the two finds the other. */
void lora_database_workers_begin(void)
{
    BackgroundWorkerHandle *handle;
    BackgroundWorker worker;

    LWLockAcquire(workers->lock, LW_EXCLUSIVE);
    for (int i = 0; i < workers->n_entries; i++)
        if (workers->entries[i].state == ENTRY_STARTING)
            workers->entries[i].state = ENTRY_WANTED;
    LWLockRelease(workers->lock);
    describe(&worker, "openlora launcher", "lora_database_launcher_main");
    if (!RegisterDynamicBackgroundWorker(&worker, &handle))
        ereport(WARNING, (errmsg("openlora could not look for queued work: no worker is free"),
                          errhint("Raise max_worker_processes; what is queued waits for the next "
                                  "call of lora_submit or lora_result.")));
}

/* It is not running. */
static void set_failed(Entry *e, long pause_ms)
{
    if (e->failures >= MAX_FAILURES)
        e->state = ENTRY_FREE;
    else
        e->state = ENTRY_WANTED;
    e->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), pause_ms);
}

/* The place of one that ended before it could say so. */
static void look_at_started(int i)
{
    Entry *e = &workers->entries[i];
    BgwHandleStatus status;
    pid_t pid;

    if (!handles[i])
        return;
    status = GetBackgroundWorkerPid(handles[i], &pid);
    if (status != BGWH_STOPPED)
        return;
    pfree(handles[i]);
    handles[i] = NULL;
    LWLockAcquire(workers->lock, LW_EXCLUSIVE);
    if (e->state == ENTRY_STARTING) {
        e->failures++;
        set_failed(e, RETRY_MS * e->failures);
    }
    LWLockRelease(workers->lock);
}

static void start(int i, const Entry *wanted)
{
    static bool warned;
    MemoryContext before = MemoryContextSwitchTo(TopMemoryContext);
    BackgroundWorker worker;
    char name[BGW_MAXLEN];
    Entry *e = &workers->entries[i];
    bool good;

    snprintf(name, sizeof(name), "openlora %s worker", kinds[wanted->kind].name);
    describe(&worker, name, "lora_database_worker_main");
    worker.bgw_main_arg = Int32GetDatum(i);
    memcpy(worker.bgw_extra, &wanted->database, sizeof(Oid));
    LWLockAcquire(workers->lock, LW_EXCLUSIVE);
    e->state = ENTRY_STARTING;
    LWLockRelease(workers->lock);
    if (handles[i])
        pfree(handles[i]);
    handles[i] = NULL;
    good = RegisterDynamicBackgroundWorker(&worker, &handles[i]);
    MemoryContextSwitchTo(before);
    if (good) {
        warned = false;
        return;
    }
    if (!warned)
        ereport(WARNING, (errmsg("openlora could not start a %s worker: no worker is free",
                                 kinds[wanted->kind].name),
                          errhint("Raise max_worker_processes. It is tried again.")));
    warned = true;
    LWLockAcquire(workers->lock, LW_EXCLUSIVE);
    set_failed(e, NO_SLOT_MS);
    LWLockRelease(workers->lock);
}

/* How many of the kind there are; when that is the most there may be, those that are idle
 * are told that others wait. */
static bool has_room(LoraWorkerKind kind)
{
    int n = 0;

    LWLockAcquire(workers->lock, LW_EXCLUSIVE);
    for (int i = 0; i < workers->n_entries; i++)
        n += workers->entries[i].kind == kind && workers->entries[i].state >= ENTRY_STARTING;
    for (int i = 0; n >= *kinds[kind].limit && i < workers->n_entries; i++) {
        Entry *e = &workers->entries[i];

        if (e->kind == kind && e->state == ENTRY_RUNNING && !e->leave) {
            e->leave = true;
            SetLatch(&ProcGlobal->allProcs[e->procno].procLatch);
        }
    }
    LWLockRelease(workers->lock);
    return n < *kinds[kind].limit;
}

long lora_database_workers_tend(void)
{
    long next = -1;

    for (int i = 0; i < workers->n_entries; i++) {
        Entry e;
        long left;

        /* most often nothing is wanted, and this is called for every frame */
        if (workers->entries[i].state != ENTRY_WANTED &&
            workers->entries[i].state != ENTRY_STARTING)
            continue;
        look_at_started(i);
        LWLockAcquire(workers->lock, LW_SHARED);
        e = workers->entries[i];
        LWLockRelease(workers->lock);
        if (e.state == ENTRY_STARTING) /* it may fail without a word */
            next = next < 0 ? RETRY_MS : Min(next, RETRY_MS);
        if (e.state != ENTRY_WANTED || (kinds[e.kind].needs_engine && !lora_engine_is_ready()) ||
            !has_room(e.kind))
            continue; /* a change of these calls this again */
        left =
            e.not_before ? TimestampDifferenceMilliseconds(GetCurrentTimestamp(), e.not_before) : 0;
        if (left <= 0)
            start(i, &e);
        else if (next < 0 || left < next)
            next = left;
    }
    return next;
}

/* -- the launcher -------------------------------------------------------------------------------
 */

static List *list_databases(void)
{
    List *list = NIL;
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

        if (database->datallowconn && !database->datistemplate)
            list = lappend_oid(list, database->oid);
        MemoryContextSwitchTo(before);
    }
    table_endscan(scan);
    table_close(relation, AccessShareLock);
    CommitTransactionCommand();
    return list;
}

/* Asks for every kind in every database that can be connected to: the workers look whether
 * there is anything to do. */
void lora_database_launcher_main(Datum arg)
{
    List *databases;
    ListCell *cell;

    pqsignal(SIGTERM, die);
    BackgroundWorkerUnblockSignals();
    BackgroundWorkerInitializeConnection(NULL, NULL, 0);
    databases = list_databases();
    foreach (cell, databases)
        for (int kind = 0; kind < LORA_WORKER_KINDS; kind++)
            lora_database_worker_ensure((LoraWorkerKind)kind, lfirst_oid(cell));
    proc_exit(0);
}

/* -- inside a worker ----------------------------------------------------------------------------
 */

static Entry *mine;

/* Takes the place that was made for it, unless another worker has it. */
static bool attach(int i, Oid database)
{
    Entry *e = &workers->entries[i];
    bool good;

    LWLockAcquire(workers->lock, LW_EXCLUSIVE);
    good = (e->state == ENTRY_STARTING || e->state == ENTRY_WANTED) && e->database == database;
    if (good) {
        e->state = ENTRY_RUNNING;
        e->work = true;
        e->leave = false;
        e->pid = MyProcPid;
        e->procno = (int)(MyProc - ProcGlobal->allProcs);
    }
    LWLockRelease(workers->lock);
    mine = good ? e : NULL;
    return good;
}

/* It is ending with its work undone, by an error or because somebody wants it to. */
static void detach(int code, Datum arg)
{
    if (!mine)
        return;
    LWLockAcquire(workers->lock, LW_EXCLUSIVE);
    if (mine->state == ENTRY_RUNNING && mine->pid == MyProcPid) {
        mine->pid = 0;
        mine->failures++;
        set_failed(mine, RETRY_MS * mine->failures);
    }
    LWLockRelease(workers->lock);
    mine = NULL;
    (void)lora_wake_worker();
}

/* Ends orderly, unless work was asked for in the meantime. */
static bool take_leave(void)
{
    bool leaves;

    LWLockAcquire(workers->lock, LW_EXCLUSIVE);
    leaves = !mine->work;
    if (leaves) {
        mine->state = ENTRY_FREE;
        mine->pid = 0;
    }
    LWLockRelease(workers->lock);
    if (leaves) {
        mine = NULL;
        (void)lora_wake_worker(); /* another may have waited for the place */
    }
    return leaves;
}

void lora_database_worker_when_ready(void)
{
    LWLockAcquire(workers->lock, LW_EXCLUSIVE);
    mine->state = ENTRY_WANTED;
    mine->pid = 0;
    mine->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), RETRY_MS);
    LWLockRelease(workers->lock);
    mine = NULL;
    (void)lora_wake_worker();
}

bool lora_database_worker_asked(void)
{
    bool asked;

    LWLockAcquire(workers->lock, LW_EXCLUSIVE);
    asked = mine->work;
    mine->work = false;
    mine->failures = 0;
    LWLockRelease(workers->lock);
    return asked;
}

static bool has_news(bool *leave)
{
    bool news;

    LWLockAcquire(workers->lock, LW_SHARED);
    news = mine->work;
    *leave = mine->leave;
    LWLockRelease(workers->lock);
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
        if (has_extension())
            kinds[kind].main();
    } while (mine && !take_leave());
    proc_exit(0);
}
