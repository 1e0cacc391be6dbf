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
#include "ledger_entry.h"
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
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define GATHER_MS 20

/* -- values ---------------------------------------------------------------------------------- */

static Datum digest_value(const ol_digest *digest)
{
    bytea *bytes = palloc(VARHDRSZ + OL_DIGEST_BYTES);

    SET_VARSIZE(bytes, VARHDRSZ + OL_DIGEST_BYTES);
    memcpy(VARDATA(bytes), digest->bytes, OL_DIGEST_BYTES);
    return PointerGetDatum(bytes);
}

static Datum digests_value(const LoraMeter *meter)
{
    Datum values[OL_MAX_REQUEST_ADAPTERS];

    for (int i = 0; i < meter->n_adapters; i++)
        values[i] = digest_value(&meter->adapters[i]);
    return PointerGetDatum(
        construct_array(values, meter->n_adapters, BYTEAOID, -1, false, TYPALIGN_INT));
}

static Datum ids_value(const LoraMeter *meter)
{
    Datum values[OL_MAX_REQUEST_ADAPTERS];

    for (int i = 0; i < meter->n_adapters; i++)
        values[i] = Int64GetDatum(meter->adapter_ids[i]);
    return PointerGetDatum(
        construct_array(values, meter->n_adapters, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

static Datum weights_value(const LoraMeter *meter)
{
    Datum values[OL_MAX_REQUEST_ADAPTERS];

    for (int i = 0; i < meter->n_adapters; i++)
        values[i] = Float8GetDatum(meter->weights[i]);
    return PointerGetDatum(
        construct_array(values, meter->n_adapters, FLOAT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

static Datum shares_value(const LoraReceipt *receipt)
{
    Datum values[OL_MAX_REQUEST_ADAPTERS];

    for (int i = 0; i < receipt->meter.n_adapters; i++)
        values[i] = Int32GetDatum(receipt->shares[i]);
    return PointerGetDatum(
        construct_array(values, receipt->meter.n_adapters, INT4OID, 4, true, TYPALIGN_INT));
}

static Datum device_value(const LoraReceipt *receipt)
{
    char plain[LORA_DEVICE_NAME];

    lora_plain_device(receipt, plain);
    return CStringGetTextDatum(plain);
}

/* -- writing ------------------------------------------------------------------------------------
 */

enum {
    RE_LEAF,
    RE_AT,
    RE_DATABASE,
    RE_ROLE,
    RE_ROLE_ID,
    RE_INFERENCE,
    RE_ATTEMPT,
    RE_OUTCOME,
    RE_TASK,
    RE_MODEL,
    RE_DEVICE,
    RE_INPUT,
    RE_CACHED,
    RE_OUTPUT,
    RE_TEMPERATURE,
    RE_TOP_K,
    RE_TOP_P,
    RE_MIN_P,
    RE_REPETITION,
    RE_PRESENCE,
    RE_FREQUENCY,
    RE_MAX_TOKENS,
    RE_IGNORE_EOS,
    RE_SEED,
    RE_ADAPTERS,
    RE_WEIGHTS,
    RE_SHARES,
    RE_PROMPT_DIGEST,
    RE_OUTPUT_DIGEST,
    RE_ADAPTER_IDS,
    RE_COUNT
};

static void put_request(Datum *values, const LoraMeter *meter)
{
    values[RE_TASK] = CStringGetTextDatum(meter->task == OL_TASK_SCORE ? "score" : "generate");
    values[RE_TEMPERATURE] = Float4GetDatum(meter->temperature);
    values[RE_TOP_K] = Int32GetDatum(meter->top_k);
    values[RE_TOP_P] = Float4GetDatum(meter->top_p);
    values[RE_MIN_P] = Float4GetDatum(meter->min_p);
    values[RE_REPETITION] = Float4GetDatum(meter->repetition_penalty);
    values[RE_PRESENCE] = Float4GetDatum(meter->presence_penalty);
    values[RE_FREQUENCY] = Float4GetDatum(meter->frequency_penalty);
    values[RE_MAX_TOKENS] = Int32GetDatum(meter->max_tokens);
    values[RE_IGNORE_EOS] = BoolGetDatum(meter->ignore_eos != 0);
    values[RE_SEED] = Int64GetDatum((int64)meter->seed);
    values[RE_ADAPTERS] = digests_value(meter);
    values[RE_ADAPTER_IDS] = ids_value(meter);
    values[RE_WEIGHTS] = weights_value(meter);
    values[RE_PROMPT_DIGEST] = digest_value(&meter->prompt);
}

static void insert_receipt(LoraReceipt *receipt, int64 leaf)
{
    static LoraStatement insert = {
        "INSERT INTO openlora.receipts (leaf, at, database, role, role_id, inference, attempt,"
        " outcome, task, base_model, device, input_tokens, cached_tokens, output_tokens,"
        " temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,"
        " frequency_penalty, max_tokens, ignore_eos, seed, adapters, weights, shares,"
        " prompt_digest, output_digest, adapter_ids)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,"
        " $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30)",
        RE_COUNT,
        {INT8OID,       TIMESTAMPTZOID, OIDOID,       NAMEOID,  REGROLEOID, INT8OID,
         INT4OID,       TEXTOID,        TEXTOID,      BYTEAOID, TEXTOID,    INT4OID,
         INT4OID,       INT4OID,        FLOAT4OID,    INT4OID,  FLOAT4OID,  FLOAT4OID,
         FLOAT4OID,     FLOAT4OID,      FLOAT4OID,    INT4OID,  BOOLOID,    INT8OID,
         BYTEAARRAYOID, FLOAT8ARRAYOID, INT4ARRAYOID, BYTEAOID, BYTEAOID,   INT8ARRAYOID}};
    static const char *const outcomes[] = {"done", "failed", "cancelled"};
    LoraMeter *meter = &receipt->meter;
    Datum values[RE_COUNT];

    values[RE_LEAF] = Int64GetDatum(leaf);
    values[RE_AT] = TimestampTzGetDatum(receipt->at);
    values[RE_DATABASE] = ObjectIdGetDatum(meter->database);
    values[RE_ROLE] = NameGetDatum(&meter->role_name);
    values[RE_ROLE_ID] = ObjectIdGetDatum(meter->role);
    values[RE_INFERENCE] = Int64GetDatum(meter->inference);
    values[RE_ATTEMPT] = Int32GetDatum(meter->attempt);
    values[RE_OUTCOME] = CStringGetTextDatum(outcomes[receipt->outcome]);
    values[RE_MODEL] = digest_value(&receipt->base_model);
    values[RE_DEVICE] = device_value(receipt);
    values[RE_INPUT] = Int32GetDatum(receipt->input_tokens);
    values[RE_CACHED] = Int32GetDatum(receipt->cached_tokens);
    values[RE_OUTPUT] = Int32GetDatum(receipt->output_tokens);
    put_request(values, meter);
    values[RE_SHARES] = shares_value(receipt);
    values[RE_OUTPUT_DIGEST] = digest_value(&receipt->output);
    lora_execute(&insert, values, NULL, false);
}

/* A file may be read again, up to where an earlier process came. */
static void insert_announcement(LoraReceipt *receipt)
{
    static LoraStatement insert = {
        "INSERT INTO openlora.announcements (inference, at, role, role_id, task, max_tokens,"
        " prompt_digest) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
        7,
        {INT8OID, TIMESTAMPTZOID, NAMEOID, REGROLEOID, TEXTOID, INT4OID, BYTEAOID}};
    LoraMeter *meter = &receipt->meter;
    Datum values[7] = {Int64GetDatum(meter->inference),
                       TimestampTzGetDatum(receipt->at),
                       NameGetDatum(&meter->role_name),
                       ObjectIdGetDatum(meter->role),
                       CStringGetTextDatum(meter->task == OL_TASK_SCORE ? "score" : "generate"),
                       Int32GetDatum(meter->max_tokens),
                       digest_value(&meter->prompt)};

    lora_execute(&insert, values, NULL, false);
}

/* Its place in the tree, in the same transaction. */
static void integrate(const LoraReceipt *receipt, uint64 leaf)
{
    ol_buf entry = {0};
    ol_digest hash;

    lora_entry_from_receipt(receipt, leaf, &entry);
    ol_leaf_hash(entry.data, entry.len, &hash);
    ol_buf_free(&entry);
    lora_tree_append(leaf, &hash);
}

/* Of a file that an earlier process may have begun. The digest is salted: no two requests
 * have the same. */
static bool is_written(const LoraReceipt *receipt)
{
    static LoraStatement find = {"SELECT 1 FROM openlora.receipts"
                                 " WHERE inference OPERATOR(pg_catalog.=) $1"
                                 " AND attempt OPERATOR(pg_catalog.=) $2"
                                 " AND prompt_digest OPERATOR(pg_catalog.=) $3",
                                 3,
                                 {INT8OID, INT4OID, BYTEAOID}};
    Datum values[3] = {Int64GetDatum(receipt->meter.inference),
                       Int32GetDatum(receipt->meter.attempt), digest_value(&receipt->meter.prompt)};

    return lora_execute(&find, values, NULL, false) > 0;
}

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
        if (receipts[i].announced) {
            insert_announcement(&receipts[i]);
        } else if (!from_file || !is_written(&receipts[i])) {
            if (leaf == first)
                note_snapshot(leaf);
            insert_receipt(&receipts[i], leaf);
            integrate(&receipts[i], (uint64)leaf++);
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
    SetCurrentStatementStartTimestamp();
    StartTransactionCommand();
    PushActiveSnapshot(GetTransactionSnapshot());
    pgstat_report_activity(STATE_RUNNING, "writing receipts");
    if (!has_table()) {
        ereport(WARNING,
                (errmsg("%d openlora receipts are dropped", n),
                 errdetail("Table openlora.receipts does not exist in this database any more.")));
    } else {
        if (SPI_connect() != SPI_OK_CONNECT)
            elog(ERROR, "SPI_connect failed");
        write_all(receipts, n, from_file);
        SPI_finish();
    }
    PopActiveSnapshot();
    CommitTransactionCommand();
    lora_database_worker_well();
    pgstat_report_stat(true);
    pgstat_report_activity(STATE_IDLE, NULL);
}

/* -- the process ----------------------------------------------------------------------------------
 */

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
        code = ol_fail(error, OL_INTERNAL, "%s", raised->message);
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
