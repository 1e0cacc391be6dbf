/* ledger.c: see ledger.h. */
#include "ledger.h"

#include "postmaster/bgworker.h"
#include "shared.h"
#include "storage/condition_variable.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define FOLDER "pg_stat"
#define PREFIX "openlora_receipts."
#define TAKEN ".taken" /* after the name: the ledger process is at it */
#define FIRST_PAUSE 1000
#define LONGEST_PAUSE 60000

typedef struct Lane {
    Oid database; /* InvalidOid: free */
    int procno;   /* of its process; -1: none */
    bool filed;   /* there is a file, too */
    bool urgent;  /* somebody waits for what is in it, or it fills up */
    uint64 turns; /* how often something was consumed, or the lane released */
    uint64 asked, answered;
    bool creating; /* an ask for a key waits: it has the place alone */
    LoraAskKind kind;
    char origin[LORA_ORIGIN_BYTES];
    ol_code code; /* of the last answer */
    ol_error error;
    uint64 written; /* of all that ever came into the ring */
    uint32 head, used;
    LoraReceipt ring[LORA_LANE_RECEIPTS];
} Lane;

typedef struct Lanes {
    LWLock *lock;
    ConditionVariable answered; /* any lane's */
    ConditionVariable written;
    Lane lanes[LORA_LANES];
} Lanes;

/* The worker's own, beside each lane. */
typedef struct Start {
    BackgroundWorkerHandle *handle;
    uint64 turns; /* of the lane, when it was started */
    long pause;
    TimestampTz not_before;
} Start;

static Lanes *shared;
static Start starts[LORA_LANES];
static bool files_wait = true; /* there may be files of databases without a lane */

/* -- files --------------------------------------------------------------------------------- */

static void path_of(Oid database, const char *suffix, char *path)
{
    snprintf(path, MAXPGPATH, "%s/%s%u%s", FOLDER, PREFIX, database, suffix);
}

static void append_to_file(const LoraReceipt *receipt)
{
    LoraReceipt copy = *receipt;
    char path[MAXPGPATH];
    FILE *file;

    INIT_CRC32C(copy.crc);
    COMP_CRC32C(copy.crc, &copy, offsetof(LoraReceipt, crc));
    FIN_CRC32C(copy.crc);
    path_of(receipt->meter.database, "", path);
    file = AllocateFile(path, PG_BINARY_A);
    if (!file || fwrite(&copy, sizeof(copy), 1, file) != 1 || FreeFile(file) != 0)
        ereport(WARNING, (errcode_for_file_access(),
                          errmsg("openlora receipt of inference " INT64_FORMAT " is lost",
                                 receipt->meter.inference),
                          errdetail("It could not be written to file \"%s\": %m", path)));
}

bool lora_lane_read(int file, LoraReceipt *receipt)
{
    ssize_t n = read(file, receipt, sizeof(*receipt));
    pg_crc32c crc;

    if (n == 0)
        return false;
    INIT_CRC32C(crc);
    COMP_CRC32C(crc, receipt, offsetof(LoraReceipt, crc));
    FIN_CRC32C(crc);
    if (n == sizeof(*receipt) && EQ_CRC32C(crc, receipt->crc) &&
        receipt->meter.magic == LORA_METER_MAGIC)
        return true;
    ereport(WARNING, (errcode(ERRCODE_DATA_CORRUPTED),
                      errmsg("a file of openlora receipts is damaged; the rest of it is lost")));
    return false;
}

/* Not one of the files that the end of a transaction closes: there are several meanwhile. */
int lora_lane_file(int lane, char *name)
{
    char path[MAXPGPATH];
    int file;

    path_of(MyDatabaseId, "", path);
    path_of(MyDatabaseId, TAKEN, name);
    file = BasicOpenFile(name, O_RDONLY | PG_BINARY); /* an earlier process did not finish it */
    if (file < 0 && errno == ENOENT) {
        LWLockAcquire(shared->lock, LW_EXCLUSIVE);
        shared->lanes[lane].filed = false;
        if (rename(path, name) == 0)
            file = BasicOpenFile(name, O_RDONLY | PG_BINARY);
        LWLockRelease(shared->lock);
    }
    if (file < 0 && errno != ENOENT)
        ereport(ERROR, (errcode_for_file_access(), errmsg("could not open file \"%s\": %m", name)));
    return file;
}

/* -- shared memory ------------------------------------------------------------------------- */

Size lora_ledger_shared_size(void)
{
    return sizeof(Lanes);
}

/* In the postmaster, after everybody else has ended; not after a crash. */
static void file_at_shutdown(int code, Datum arg)
{
    for (int i = 0; code == 0 && i < LORA_LANES; i++) {
        Lane *lane = &shared->lanes[i];

        for (; lane->used > 0; lane->used--) {
            append_to_file(&lane->ring[lane->head]);
            lane->head = (lane->head + 1) % LORA_LANE_RECEIPTS;
        }
    }
}

void lora_ledger_startup_shared(void)
{
    bool found;

    shared = ShmemInitStruct("openlora receipts", sizeof(Lanes), &found);
    if (found)
        return;
    memset(shared, 0, sizeof(*shared));
    shared->lock = &GetNamedLWLockTranche("openlora")[3].lock;
    ConditionVariableInit(&shared->answered);
    ConditionVariableInit(&shared->written);
    for (int i = 0; i < LORA_LANES; i++)
        shared->lanes[i].procno = -1;
    if (!IsUnderPostmaster)
        on_shmem_exit(file_at_shutdown, 0);
}

/* Under the lock: the database's lane, or a free one, which is then its own; NULL: none. */
static Lane *lane_of(Oid database)
{
    Lane *free = NULL;

    for (int i = 0; i < LORA_LANES; i++) {
        Lane *lane = &shared->lanes[i];

        if (lane->database == database)
            return lane;
        if (!OidIsValid(lane->database) && !free)
            free = lane;
    }
    if (free)
        free->database = database;
    return free;
}

/* -- the worker: in -------------------------------------------------------------------------- */

/* Its process gathers receipts for a while before it writes them: it is woken by the first,
 * and when the lane is half full. */
void lora_ledger_put(const LoraReceipt *receipt)
{
    bool wake = true;
    int procno = -1;
    Lane *lane;

    LWLockAcquire(shared->lock, LW_EXCLUSIVE);
    lane = lane_of(receipt->meter.database);
    if (lane && lane->used < LORA_LANE_RECEIPTS) {
        lane->ring[(lane->head + lane->used++) % LORA_LANE_RECEIPTS] = *receipt;
        wake = lane->used == 1 || lane->used == LORA_LANE_RECEIPTS / 2;
        lane->urgent = lane->urgent || lane->used >= LORA_LANE_RECEIPTS / 2;
    } else {
        append_to_file(receipt);
        if (lane)
            lane->filed = true;
        else
            files_wait = true;
    }
    if (lane)
        procno = lane->procno;
    LWLockRelease(shared->lock);
    if (procno >= 0 && wake)
        SetLatch(&ProcGlobal->allProcs[procno].procLatch);
}

/* -- announcing ---------------------------------------------------------------------------- */

/* False when there is no room now; a lane that nobody has is an error. */
static bool try_announce(const LoraReceipt *receipt, LoraAnnounced *announced, ol_code *code,
                         ol_error *error)
{
    bool entered = false;
    int procno = -1;
    Lane *lane;

    LWLockAcquire(shared->lock, LW_EXCLUSIVE);
    lane = lane_of(MyDatabaseId);
    if (lane && lane->used < LORA_LANE_RECEIPTS) {
        lane->ring[(lane->head + lane->used++) % LORA_LANE_RECEIPTS] = *receipt;
        announced->lane = (int)(lane - shared->lanes);
        announced->number = lane->written + lane->used;
        entered = true;
    }
    if (lane)
        lane->urgent = true;
    procno = lane ? lane->procno : -1;
    LWLockRelease(shared->lock);
    *code = OL_OK;
    if (!lane)
        *code = ol_fail(error, OL_BUSY, "no more than %d databases can announce requests at a time",
                        LORA_LANES);
    else if (procno >= 0)
        SetLatch(&ProcGlobal->allProcs[procno].procLatch);
    else
        (void)lora_wake_worker();
    return entered;
}

bool lora_ledger_announce(const LoraMeter *meter, LoraAnnounced *announced, ol_error *error)
{
    LoraReceipt *receipt = palloc0(sizeof(*receipt));
    ol_code code;

    receipt->meter = *meter;
    receipt->at = GetCurrentTimestamp();
    receipt->announced = 1;
    ConditionVariablePrepareToSleep(&shared->written);
    while (!try_announce(receipt, announced, &code, error) && code == OL_OK)
        ConditionVariableSleep(&shared->written, lora_wait_event());
    ConditionVariableCancelSleep();
    pfree(receipt);
    return code == OL_OK;
}

/* A lane that has another database now has been written to its end before. */
static bool is_announced(const LoraAnnounced *announced)
{
    bool written;

    LWLockAcquire(shared->lock, LW_SHARED);
    written = shared->lanes[announced->lane].written >= announced->number;
    LWLockRelease(shared->lock);
    return written;
}

void lora_ledger_await(const LoraAnnounced *announced)
{
    if (announced->number == 0 || is_announced(announced))
        return;
    ConditionVariablePrepareToSleep(&shared->written);
    while (!is_announced(announced))
        ConditionVariableSleep(&shared->written, lora_wait_event());
    ConditionVariableCancelSleep();
}

/* -- asking ------------------------------------------------------------------------------- */

/* Which lane, and the number of the answer to wait for. */
static ol_code enter_ask(LoraAskKind kind, const char *origin, int *at, uint64 *number,
                         ol_error *error)
{
    int procno = -1;
    Lane *lane;

    LWLockAcquire(shared->lock, LW_EXCLUSIVE);
    lane = lane_of(MyDatabaseId);
    if (!lane || lane->creating || (kind != LORA_ASK_SIGN && lane->asked > lane->answered)) {
        LWLockRelease(shared->lock);
        return ol_fail(error, OL_BUSY, "the ledger is busy with other requests");
    }
    lane->kind = kind;
    lane->creating = kind != LORA_ASK_SIGN;
    strlcpy(lane->origin, origin, sizeof(lane->origin));
    *number = ++lane->asked;
    lane->urgent = true;
    *at = (int)(lane - shared->lanes);
    procno = lane->procno;
    LWLockRelease(shared->lock);
    if (procno >= 0)
        SetLatch(&ProcGlobal->allProcs[procno].procLatch);
    else
        (void)lora_wake_worker();
    return OL_OK;
}

/* True with the answer; it stands for as long as the ledger process waits before it ends. */
static bool take_answer(int at, uint64 number, ol_code *code, ol_error *error)
{
    const Lane *lane = &shared->lanes[at];
    bool there;

    LWLockAcquire(shared->lock, LW_SHARED);
    there = lane->answered >= number || lane->database != MyDatabaseId;
    *code = lane->code;
    *error = lane->error;
    if (lane->database != MyDatabaseId)
        *code = ol_fail(error, OL_BUSY, "the ledger's answer came too early: ask again");
    LWLockRelease(shared->lock);
    return there;
}

ol_code lora_ledger_ask(LoraAskKind kind, const char *origin, ol_error *error)
{
    uint64 number = 0;
    ol_code code;
    int at = 0;

    OL_TRY(enter_ask(kind, origin, &at, &number, error));
    ConditionVariablePrepareToSleep(&shared->answered);
    while (!take_answer(at, number, &code, error))
        ConditionVariableSleep(&shared->answered, lora_wait_event());
    ConditionVariableCancelSleep();
    return code;
}

/* -- the worker: starting ---------------------------------------------------------------------- */

/* Gives lanes to databases that have a file, as far as there are any. */
static void find_files(void)
{
    DIR *folder = AllocateDir(FOLDER);
    struct dirent *entry;

    files_wait = false;
    while ((entry = ReadDirExtended(folder, FOLDER, LOG)) != NULL) {
        Lane *lane;
        Oid database;

        if (strncmp(entry->d_name, PREFIX, strlen(PREFIX)) != 0)
            continue;
        database = (Oid)strtoul(entry->d_name + strlen(PREFIX), NULL, 10);
        if (!OidIsValid(database))
            continue;
        LWLockAcquire(shared->lock, LW_EXCLUSIVE);
        lane = lane_of(database);
        if (lane)
            lane->filed = true;
        else
            files_wait = true;
        LWLockRelease(shared->lock);
    }
    FreeDir(folder);
}

/* Whether a process that was started is still there; what it has done decides on the pause
 * before the next. */
static bool is_running(Start *start, uint64 turns)
{
    pid_t pid;

    if (!start->handle)
        return false;
    if (GetBackgroundWorkerPid(start->handle, &pid) != BGWH_STOPPED)
        return true;
    pfree(start->handle);
    start->handle = NULL;
    start->pause = turns != start->turns ? 0
                   : start->pause == 0   ? FIRST_PAUSE
                                         : Min(start->pause * 2, LONGEST_PAUSE);
    start->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), start->pause);
    return false;
}

static void start_process(Start *start, Oid database)
{
    MemoryContext before = MemoryContextSwitchTo(TopMemoryContext); /* for the handle */
    BackgroundWorker process = {0};

    snprintf(process.bgw_name, BGW_MAXLEN, "openlora ledger");
    snprintf(process.bgw_type, BGW_MAXLEN, "openlora ledger");
    snprintf(process.bgw_library_name, BGW_MAXLEN, "openlora");
    snprintf(process.bgw_function_name, BGW_MAXLEN, "lora_ledger_main");
    process.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
    process.bgw_start_time = BgWorkerStart_RecoveryFinished;
    process.bgw_restart_time = BGW_NEVER_RESTART;
    process.bgw_main_arg = ObjectIdGetDatum(database);
    process.bgw_notify_pid = MyProcPid;
    if (!RegisterDynamicBackgroundWorker(&process, &start->handle)) {
        ereport(LOG, (errmsg("no worker slot is free for the openlora ledger"),
                      errhint("Raise max_worker_processes. Receipts wait meanwhile.")));
        start->handle = NULL;
        start->pause = start->pause == 0 ? FIRST_PAUSE : Min(start->pause * 2, LONGEST_PAUSE);
        start->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), start->pause);
    }
    MemoryContextSwitchTo(before);
}

static bool has_work(const Lane *lane)
{
    return lane->used > 0 || lane->filed || lane->asked > lane->answered;
}

/* The database whose lane has something to be written, if any, and the lane's turns. */
static Oid wanted(int i, uint64 *turns)
{
    const Lane *lane = &shared->lanes[i];
    Oid database;

    LWLockAcquire(shared->lock, LW_SHARED);
    database = has_work(lane) && lane->procno < 0 ? lane->database : InvalidOid;
    *turns = lane->turns;
    LWLockRelease(shared->lock);
    return database;
}

long lora_ledger_tend(void)
{
    long next = -1;

    if (files_wait)
        find_files();
    for (int i = 0; i < LORA_LANES; i++) {
        Start *start = &starts[i];
        uint64 turns;
        Oid database = wanted(i, &turns);
        long left;

        if (!OidIsValid(database) || is_running(start, turns))
            continue;
        left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), start->not_before);
        if (left <= 0) {
            start->turns = turns;
            start_process(start, database);
            left = start->handle ? -1 : start->pause;
        }
        if (left >= 0 && (next < 0 || left < next))
            next = left;
    }
    return next;
}

/* -- the ledger process ---------------------------------------------------------------------- */

static void leave(int code, Datum lane)
{
    LWLockAcquire(shared->lock, LW_EXCLUSIVE);
    if (shared->lanes[DatumGetInt32(lane)].procno == (int)(MyProc - ProcGlobal->allProcs))
        shared->lanes[DatumGetInt32(lane)].procno = -1;
    LWLockRelease(shared->lock);
    (void)lora_wake_worker();
}

int lora_lane_enter(void)
{
    int found = -1;

    LWLockAcquire(shared->lock, LW_EXCLUSIVE);
    for (int i = 0; i < LORA_LANES; i++)
        if (shared->lanes[i].database == MyDatabaseId && shared->lanes[i].procno < 0) {
            shared->lanes[i].procno = (int)(MyProc - ProcGlobal->allProcs);
            found = i;
        }
    LWLockRelease(shared->lock);
    if (found >= 0)
        before_shmem_exit(leave, Int32GetDatum(found));
    return found;
}

bool lora_lane_waits(int at, bool *urgent)
{
    Lane *lane = &shared->lanes[at];
    bool waits;

    LWLockAcquire(shared->lock, LW_EXCLUSIVE);
    waits = lane->used > 0;
    *urgent = lane->urgent;
    lane->urgent = false;
    LWLockRelease(shared->lock);
    return waits;
}

int lora_lane_copy(int at, LoraReceipt *out)
{
    const Lane *lane = &shared->lanes[at];
    int n;

    LWLockAcquire(shared->lock, LW_SHARED);
    n = (int)lane->used;
    for (int i = 0; i < n; i++)
        out[i] = lane->ring[(lane->head + (uint32)i) % LORA_LANE_RECEIPTS];
    LWLockRelease(shared->lock);
    return n;
}

void lora_lane_consume(int at, int n)
{
    Lane *lane = &shared->lanes[at];

    LWLockAcquire(shared->lock, LW_EXCLUSIVE);
    lane->head = (lane->head + (uint32)n) % LORA_LANE_RECEIPTS;
    lane->used -= (uint32)n;
    lane->written += (uint64)n;
    lane->turns++;
    LWLockRelease(shared->lock);
    ConditionVariableBroadcast(&shared->written);
}

bool lora_lane_release(int at)
{
    Lane *lane = &shared->lanes[at];
    bool empty;

    LWLockAcquire(shared->lock, LW_EXCLUSIVE);
    empty = !has_work(lane);
    if (empty) {
        lane->database = InvalidOid;
        lane->procno = -1;
        lane->turns++;
    }
    LWLockRelease(shared->lock);
    return empty;
}

bool lora_lane_asked(int at, LoraAskKind *kind, char origin[LORA_ORIGIN_BYTES], uint64 *number)
{
    const Lane *lane = &shared->lanes[at];
    bool asked;

    LWLockAcquire(shared->lock, LW_SHARED);
    asked = lane->asked > lane->answered;
    *kind = lane->kind;
    *number = lane->asked;
    strlcpy(origin, lane->origin, LORA_ORIGIN_BYTES);
    LWLockRelease(shared->lock);
    return asked;
}

void lora_lane_answer(int at, uint64 number, ol_code code, const ol_error *error)
{
    Lane *lane = &shared->lanes[at];

    LWLockAcquire(shared->lock, LW_EXCLUSIVE);
    lane->answered = number;
    lane->creating = false;
    lane->code = code;
    if (code != OL_OK)
        lane->error = *error;
    LWLockRelease(shared->lock);
    ConditionVariableBroadcast(&shared->answered);
}
