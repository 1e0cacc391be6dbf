/*
 * ledger_worker.c: `openlora ledger`: writes a database's receipts, all that wait in one
 * transaction. One process per database has the table's lock while it writes, so that leaves
 * are numbered without gaps, in the order of commits.
 */
#include "ledger.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "database_worker.h"
#include "ledger_rows.h"
#include "ledger_signer.h"
#include "ledger_tree.h"
#include "libpq/pqsignal.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "shared.h"
#include "spi.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utf8.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define GATHER_MS 20

/* -- writing --------------------------------------------------------------------------------- */

/* Locks the table against other writers; the number of the next leaf. */
static int64 next_leaf(void)
{
    int code = SPI_execute("LOCK TABLE openlora.receipts IN EXCLUSIVE MODE", false, 0);

    if (code < 0)
        elog(ERROR, "could not lock openlora.receipts: %s", SPI_result_code_string(code));
    return (int64)lora_tree_size(true);
}

/* What was committed when the leaves from here on were written: provenance as of then. */
static void note_snapshot(int64 leaf)
{
    static LoraStatement insert = {
        "INSERT INTO openlora.receipt_snapshots (first_leaf, system, snapshot)"
        " VALUES ($1, openlora.system_identifier(), pg_catalog.pg_current_snapshot())",
        1,
        {INT8OID}};

    lora_execute(&insert, (Datum[]){Int64GetDatum(leaf)}, NULL, false);
}

static bool has_table(void)
{
    Oid space = get_namespace_oid("openlora", true);

    return OidIsValid(space) && OidIsValid(get_relname_relid("receipts", space));
}

static void write_all(LoraReceipt *receipts, int n, bool from_file)
{
    MemoryContext rows, before;
    int64 leaf = next_leaf(), first = leaf;

    rows = AllocSetContextCreate(CurrentMemoryContext, "openlora receipt", ALLOCSET_SMALL_SIZES);
    before = MemoryContextSwitchTo(rows);
    for (int i = 0; i < n; i++) {
        if (!from_file || !lora_receipt_is_written(&receipts[i])) {
            if (leaf == first)
                note_snapshot(leaf);
            lora_receipt_write(&receipts[i], leaf++);
        }
        SPI_freetuptable(SPI_tuptable);
        MemoryContextReset(rows);
    }
    MemoryContextSwitchTo(before);
    MemoryContextDelete(rows);
}

/* One transaction. */
static void write_batch(LoraReceipt *receipts, int n, bool from_file)
{
    lora_begin_work();
    pgstat_report_activity(STATE_RUNNING, "writing receipts");
    if (has_table())
        write_all(receipts, n, from_file);
    else
        ereport(WARNING,
                (errmsg("%d openlora receipts are dropped", n),
                 errdetail("Table openlora.receipts does not exist in this database any more.")));
    lora_commit_work();
    lora_database_worker_well();
    pgstat_report_stat(true);
    pgstat_report_activity(STATE_IDLE, NULL);
}

/* -- the process ------------------------------------------------------------------------- */

static bool write_file(int lane, LoraReceipt *batch)
{
    char name[MAXPGPATH];
    int n, file = lora_lane_file(lane, name);

    if (file < 0)
        return false;
    do {
        for (n = 0; n < LORA_LANE_RECEIPTS && lora_lane_read(file, &batch[n]); n++)
            ;
        if (n > 0)
            write_batch(batch, n, true);
    } while (n == LORA_LANE_RECEIPTS);
    close(file);
    if (unlink(name) != 0)
        ereport(ERROR,
                (errcode_for_file_access(), errmsg("could not remove file \"%s\": %m", name)));
    lora_lane_consume(lane, 0);
    return true;
}

/* Others that come meanwhile are written in the same transaction. */
static void gather(void)
{
    (void)WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, GATHER_MS,
                    lora_wait_event());
    ResetLatch(MyLatch);
    CHECK_FOR_INTERRUPTS();
}

static void write_lane(int lane, LoraReceipt *batch)
{
    bool urgent;

    while (write_file(lane, batch))
        ;
    while (lora_lane_waits(lane, &urgent)) {
        int n;

        if (!urgent)
            gather();
        n = lora_lane_copy(lane, batch);
        write_batch(batch, n, false);
        lora_lane_consume(lane, n);
    }
}

/* An error that is raised is the answer, too. */
static ol_code serve(LoraAskKind kind, const char *origin, ol_error *error)
{
    volatile ol_code code = OL_OK;
    MemoryContext before = CurrentMemoryContext;

    PG_TRY();
    {
        code = kind == LORA_ASK_SIGN ? lora_signer_sign(error)
                                     : lora_signer_create(origin, kind == LORA_ASK_REPLACE, error);
    }
    PG_CATCH();
    {
        ErrorData *raised;

        MemoryContextSwitchTo(before);
        raised = CopyErrorData();
        FlushErrorState();
        AbortCurrentTransaction();
        code = ol_fail(error, OL_INTERNAL, "%s", lora_to_utf8(raised->message));
        FreeErrorData(raised);
    }
    PG_END_TRY();
    MemoryContextSwitchTo(before);
    return code;
}

static void serve_asks(int lane)
{
    char origin[LORA_ORIGIN_BYTES];
    LoraAskKind kind;
    ol_error error;
    uint64 number;

    while (lora_lane_asked(lane, &kind, origin, &number)) {
        ol_code code = serve(kind, origin, &error);

        lora_lane_answer(lane, number, code, &error);
    }
}

/* Whatever the database's settings are for its users. */
static void settle_settings(void)
{
    SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_SUSET, PGC_S_OVERRIDE);
    SetConfigOption("default_transaction_isolation", "read committed", PGC_SUSET, PGC_S_OVERRIDE);
    SetConfigOption("default_transaction_read_only", "off", PGC_SUSET, PGC_S_OVERRIDE);
    SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
#if PG_VERSION_NUM >= 170000
    SetConfigOption("transaction_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
#endif
    SetConfigOption("lock_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
    SetConfigOption("session_replication_role", "origin", PGC_SUSET, PGC_S_OVERRIDE);
    if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF) /* somebody may wait for what is announced */
        SetConfigOption("synchronous_commit", "local", PGC_SUSET, PGC_S_OVERRIDE);
}

void lora_ledger_worker(void)
{
    int lane = lora_lane_enter();
    LoraReceipt *batch;

    if (lane < 0)
        return;
    settle_settings();
    batch = MemoryContextAllocHuge(TopMemoryContext, sizeof(*batch) * LORA_LANE_RECEIPTS);
    do {
        (void)lora_database_worker_asked();
        write_lane(lane, batch);
        serve_asks(lane);
    } while (lora_database_worker_wait(true, -1));
}
