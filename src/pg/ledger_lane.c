/* ledger_lane.c: see ledger.h: lanes, and receipts in and out of them. */
#include "ledger_lane.h"

#include "access/xlog.h"
#include "database_worker.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "shared.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(lora_receipts_known_since);

/* -- shared memory ------------------------------------------------------------------------- */

Size lora_ledger_shared_size(void)
{
    return sizeof(LoraLanes);
}

/* In the postmaster, after everybody else has ended; not after a crash. */
static void file_at_shutdown(int code, Datum arg)
{
    for (int i = 0; code == 0 && i < LORA_LANES; i++) {
        LoraLane *lane = &lora_lanes->lanes[i];

        for (; lane->used > 0; lane->used--) {
            lora_file_append(&lane->ring[lane->head]);
            lane->head = (lane->head + 1) % LORA_LANE_RECEIPTS;
        }
    }
    if (code == 0)
        (void)lora_files_sync(true);
}

void lora_ledger_startup_shared(void)
{
    bool found;

    lora_lanes = ShmemInitStruct("openlora receipts", sizeof(LoraLanes), &found);
    if (found)
        return;
    memset(lora_lanes, 0, sizeof(*lora_lanes));
    lora_lanes->lock = &GetNamedLWLockTranche("openlora")[3].lock;
    lora_lanes->files_wait = true;
    lora_lanes->turns = 1;
    lora_lanes->since = GetCurrentTimestamp();
    ConditionVariableInit(&lora_lanes->answered);
    ConditionVariableInit(&lora_lanes->written);
    if (!IsUnderPostmaster)
        on_shmem_exit(file_at_shutdown, 0);
}

/* -- in ---------------------------------------------------------------------------------------- */

/* Its process gathers receipts for a while before it writes them: it is woken by the first,
 * and when the lane is half full. */
void lora_ledger_put(const LoraReceipt *receipt)
{
    Oid database = receipt->meter.database;
    bool wake = true;
    LoraLane *lane;

    LWLockAcquire(lora_lanes->lock, LW_EXCLUSIVE);
    lane = lora_lane_of(database);
    if (lane && lane->used < LORA_LANE_RECEIPTS) {
        lane->ring[(lane->head + lane->used++) % LORA_LANE_RECEIPTS] = *receipt;
        wake = lane->used == 1 || lane->used == LORA_LANE_RECEIPTS / 2;
        lane->urgent = lane->urgent || lane->used >= LORA_LANE_RECEIPTS / 2;
    } else {
        lora_file_append(receipt);
        if (lane)
            lane->filed = true;
        else
            lora_lanes->files_wait = true;
    }
    LWLockRelease(lora_lanes->lock);
    if (lane && wake)
        lora_database_worker_ensure(LORA_WORKER_LEDGER, database);
}

/* -- announcing ---------------------------------------------------------------------------- */

/* False when there is no room now; a lane that nobody has is an error. */
static bool try_announce(const LoraReceipt *receipt, LoraAnnounced *announced, ol_code *code,
                         ol_error *error)
{
    bool entered = false;
    LoraLane *lane;

    LWLockAcquire(lora_lanes->lock, LW_EXCLUSIVE);
    lane = lora_lane_of(MyDatabaseId);
    if (lane && lane->used < LORA_LANE_RECEIPTS) {
        lane->ring[(lane->head + lane->used++) % LORA_LANE_RECEIPTS] = *receipt;
        announced->lane = (int)(lane - lora_lanes->lanes);
        announced->number = lane->written + lane->used;
        entered = true;
    }
    if (lane)
        lane->urgent = true;
    LWLockRelease(lora_lanes->lock);
    *code = OL_OK;
    if (!lane)
        *code = ol_fail(error, OL_BUSY, "no more than %d databases can announce requests at a time",
                        LORA_LANES);
    else
        lora_database_worker_ensure(LORA_WORKER_LEDGER, MyDatabaseId);
    return entered;
}

bool lora_ledger_announce(const LoraReceipt *receipt, LoraAnnounced *announced, ol_error *error)
{
    ol_code code;

    ConditionVariablePrepareToSleep(&lora_lanes->written);
    while (!try_announce(receipt, announced, &code, error) && code == OL_OK)
        ConditionVariableSleep(&lora_lanes->written, lora_wait_event());
    ConditionVariableCancelSleep();
    return code == OL_OK;
}

/* A lane that has another database now has been written to its end before. */
static bool is_announced(const LoraAnnounced *announced)
{
    bool written;

    LWLockAcquire(lora_lanes->lock, LW_SHARED);
    written = lora_lanes->lanes[announced->lane].written >= announced->number;
    LWLockRelease(lora_lanes->lock);
    return written;
}

void lora_ledger_await(const LoraAnnounced *announced)
{
    if (announced->number == 0 || is_announced(announced))
        return;
    ConditionVariablePrepareToSleep(&lora_lanes->written);
    while (!is_announced(announced))
        ConditionVariableSleep(&lora_lanes->written, lora_wait_event());
    ConditionVariableCancelSleep();
}

/* -- for SQL ----------------------------------------------------------------------------------- */

/* openlora.receipts_known_since() -> timestamptz */
Datum lora_receipts_known_since(PG_FUNCTION_ARGS)
{
    if (!lora_lanes || RecoveryInProgress())
        PG_RETURN_NULL();
    if (lora_file_waits(MyDatabaseId))
        PG_RETURN_TIMESTAMPTZ(DT_NOBEGIN);
    PG_RETURN_TIMESTAMPTZ(lora_lanes->since);
}

/* -- for the openlora worker and the launcher ------------------------------------------------ */

/* Files are looked for at the start, and when a lane is free for one of those that had none. */
long lora_ledger_tend(void)
{
    bool look;

    LWLockAcquire(lora_lanes->lock, LW_EXCLUSIVE);
    look = lora_lanes->files_wait && lora_lanes->looked_at != lora_lanes->turns;
    lora_lanes->looked_at = lora_lanes->turns;
    if (look)
        lora_lanes->files_wait = false;
    LWLockRelease(lora_lanes->lock);
    if (look)
        lora_files_find();
    return lora_files_sync(false);
}

List *lora_ledger_databases(void)
{
    List *list = lora_files_databases();
    Oid databases[LORA_LANES];
    int n = 0;

    LWLockAcquire(lora_lanes->lock, LW_SHARED);
    for (int i = 0; i < LORA_LANES; i++)
        if (lora_lane_has_work(&lora_lanes->lanes[i]))
            databases[n++] = lora_lanes->lanes[i].database;
    LWLockRelease(lora_lanes->lock);
    while (n > 0)
        list = lappend_oid(list, databases[--n]);
    return list;
}

void lora_ledger_drop(Oid database)
{
    uint32 dropped = 0;

    LWLockAcquire(lora_lanes->lock, LW_EXCLUSIVE);
    for (int i = 0; i < LORA_LANES; i++) {
        LoraLane *lane = &lora_lanes->lanes[i];

        if (lane->database != database)
            continue;
        dropped = lane->used;
        lane->written += lane->used;
        lane->used = 0;
        lane->filed = lane->creating = false;
        lane->answered = lane->asked;
        lane->last_turn = ++lora_lanes->turns;
    }
    lora_files_remove(database);
    LWLockRelease(lora_lanes->lock);
    ConditionVariableBroadcast(&lora_lanes->written);
    ereport(LOG, (errmsg("openlora receipts of database %u are dropped, as it is", database),
                  errdetail("%u of them were in memory.", dropped)));
}

/* -- out: in the ledger process ---------------------------------------------------------------- */

/* Not if the next one has it already. */
static void leave(int code, Datum at)
{
    LoraLane *lane = &lora_lanes->lanes[DatumGetInt32(at)];

    LWLockAcquire(lora_lanes->lock, LW_EXCLUSIVE);
    if (lane->pid == MyProcPid) {
        lane->pid = 0;
        lane->last_turn = ++lora_lanes->turns;
    }
    LWLockRelease(lora_lanes->lock);
    (void)lora_wake_worker();
}

int lora_lane_enter(void)
{
    LoraLane *lane = NULL;

    LWLockAcquire(lora_lanes->lock, LW_EXCLUSIVE);
    for (int i = 0; !lane && i < LORA_LANES; i++)
        if (lora_lanes->lanes[i].database == MyDatabaseId)
            lane = &lora_lanes->lanes[i];
    if (lane)
        lane->pid = MyProcPid;
    LWLockRelease(lora_lanes->lock);
    if (!lane)
        return -1;
    before_shmem_exit(leave, Int32GetDatum((int)(lane - lora_lanes->lanes)));
    return (int)(lane - lora_lanes->lanes);
}

bool lora_lane_waits(int at, bool *urgent)
{
    LoraLane *lane = &lora_lanes->lanes[at];
    bool waits;

    LWLockAcquire(lora_lanes->lock, LW_EXCLUSIVE);
    waits = lane->used > 0;
    *urgent = lane->urgent;
    lane->urgent = false;
    LWLockRelease(lora_lanes->lock);
    return waits;
}

int lora_lane_copy(int at, LoraReceipt *out)
{
    const LoraLane *lane = &lora_lanes->lanes[at];
    int n;

    LWLockAcquire(lora_lanes->lock, LW_SHARED);
    n = (int)lane->used;
    for (int i = 0; i < n; i++)
        out[i] = lane->ring[(lane->head + (uint32)i) % LORA_LANE_RECEIPTS];
    LWLockRelease(lora_lanes->lock);
    return n;
}

void lora_lane_consume(int at, int n)
{
    LoraLane *lane = &lora_lanes->lanes[at];

    LWLockAcquire(lora_lanes->lock, LW_EXCLUSIVE);
    lane->head = (lane->head + (uint32)n) % LORA_LANE_RECEIPTS;
    lane->used -= (uint32)n;
    lane->written += (uint64)n;
    LWLockRelease(lora_lanes->lock);
    ConditionVariableBroadcast(&lora_lanes->written);
}
