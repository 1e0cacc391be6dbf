/*
 * ledger_verify.c: lora_ledger_verify: computes again what receipts, tree and checkpoints say
 * of each other, and names the first that is wrong.
 */
#include "lora_pg.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "ledger/note.h"
#include "ledger_entry.h"
#include "ledger_signer.h"
#include "ledger_tree.h"
#include "spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(lora_ledger_verify);

#define BATCH 512

typedef struct Verdict {
    int64 checked, bad; /* bad: the first index that is wrong */
    char problem[256];  /* empty: there is none */
} Verdict;

static bool wrong(Verdict *v, int64 index, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static bool wrong(Verdict *v, int64 index, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(v->problem, sizeof(v->problem), format, args);
    va_end(args);
    v->bad = index;
    return false;
}

/* -- receipts against the hashes of leaves ----------------------------------------------- */

/* Column LORA_ENTRY_N_COLUMNS + 1: the stored hash. */
static bool check_row(uint64 row, int64 expected, Verdict *v)
{
    int64 leaf = lora_int64(row, 1);
    ol_buf entry = {0};
    ol_digest hash;
    bytea *stored;
    bool is_null, good;

    if (leaf != expected)
        return wrong(v, expected, "receipt " INT64_FORMAT " is missing", expected);
    stored = DatumGetByteaPP(lora_value(row, LORA_ENTRY_N_COLUMNS + 1, &is_null));
    if (is_null)
        return wrong(v, leaf, "receipt " INT64_FORMAT " is not in the tree", leaf);
    good = lora_entry_from_row(row, &entry);
    if (good)
        ol_leaf_hash(entry.data, entry.len, &hash);
    ol_buf_free(&entry);
    if (!good || VARSIZE_ANY_EXHDR(stored) != OL_DIGEST_BYTES ||
        memcmp(VARDATA_ANY(stored), hash.bytes, OL_DIGEST_BYTES) != 0)
        return wrong(v, leaf, "receipt " INT64_FORMAT " is not what was entered into the tree",
                     leaf);
    v->checked++;
    return true;
}

/* All of [from, to). */
static bool check_receipts(int64 from, int64 to, Verdict *v)
{
    static LoraStatement next = {
        "SELECT r.*, h.hash FROM (SELECT " LORA_ENTRY_COLUMNS " FROM openlora.receipts"
        " WHERE leaf OPERATOR(pg_catalog.>=) $1 AND leaf OPERATOR(pg_catalog.<) $2) r"
        " LEFT JOIN openlora.ledger_hashes h ON h.level OPERATOR(pg_catalog.=) 0::pg_catalog.int2"
        " AND h.at OPERATOR(pg_catalog.=) r.leaf ORDER BY r.leaf",
        2,
        {INT8OID, INT8OID}};
    MemoryContext rows =
        AllocSetContextCreate(CurrentMemoryContext, "openlora verify", ALLOCSET_DEFAULT_SIZES);

    for (int64 at = from; at < to; at += BATCH) {
        int64 until = Min(at + BATCH, to);
        Datum values[2] = {Int64GetDatum(at), Int64GetDatum(until)};
        uint64 n = lora_execute(&next, values, NULL, true);

        CHECK_FOR_INTERRUPTS();
        for (uint64 row = 0; row < n; row++) {
            MemoryContext before = MemoryContextSwitchTo(rows);
            bool good = check_row(row, at + (int64)row, v);

            MemoryContextSwitchTo(before);
            MemoryContextReset(rows);
            if (!good)
                return false;
        }
        if (n < (uint64)(until - at))
            return wrong(v, at + (int64)n, "receipt " INT64_FORMAT " is missing", at + (int64)n);
        SPI_freetuptable(SPI_tuptable);
    }
    MemoryContextDelete(rows);
    return true;
}

/* -- the tree ---------------------------------------------------------------------------------- */

/* Every hash of level 1 and above is the root of the tile below it. */
static bool check_tiles(const LoraTree *tree, int64 from, int64 to, Verdict *v)
{
    int64 width = OL_TILE_WIDTH;

    for (int level = 0; width <= to; level++, width *= OL_TILE_WIDTH)
        for (int64 at = from / width; at < to / width; at++) {
            ol_digest below[OL_TILE_WIDTH], root, stored;
            ol_error error;

            if (tree->tree.read(tree->tree.context, level, (uint64)at * OL_TILE_WIDTH,
                                OL_TILE_WIDTH, below, &error) != OL_OK ||
                tree->tree.read(tree->tree.context, level + 1, (uint64)at, 1, &stored, &error) !=
                    OL_OK)
                return wrong(v, at * width, "%s", error.message);
            ol_fold_hashes(below, OL_TILE_WIDTH, &root);
            if (!ol_digest_equal(&root, &stored))
                return wrong(v, at * width,
                             "hash " INT64_FORMAT " of level %d is not that of what is below it",
                             at, level + 1);
        }
    return true;
}

/* A hash that stands where the tree has none, or a receipt before the first. */
static bool check_strays(uint64 size, Verdict *v)
{
    static LoraStatement hash = {
        "SELECT at, level::pg_catalog.int8 FROM openlora.ledger_hashes"
        " WHERE level OPERATOR(pg_catalog.<) 0 OR level OPERATOR(pg_catalog.>=) 8"
        " OR at OPERATOR(pg_catalog.<) 0 OR at OPERATOR(pg_catalog.>=)"
        " ($1 OPERATOR(pg_catalog.>>) (8 OPERATOR(pg_catalog.*) level)) LIMIT 1",
        1,
        {INT8OID}};
    static LoraStatement before = {
        "SELECT leaf FROM openlora.receipts WHERE leaf OPERATOR(pg_catalog.<) 0"
        " ORDER BY leaf LIMIT 1",
        0,
        {0}};
    Datum value = Int64GetDatum((int64)size);

    if (lora_execute(&before, NULL, NULL, true) > 0)
        return wrong(v, lora_int64(0, 1), "receipt " INT64_FORMAT " is not in the tree",
                     lora_int64(0, 1));
    if (lora_execute(&hash, &value, NULL, true) > 0)
        return wrong(v, (int64)size,
                     "hash " INT64_FORMAT " of level " INT64_FORMAT
                     " is none of a tree of " UINT64_FORMAT,
                     lora_int64(0, 1), lora_int64(0, 2), size);
    return true;
}

/* -- checkpoints ------------------------------------------------------------------------- */

static bool is_digest(const bytea *stored, const ol_digest *digest)
{
    return stored && VARSIZE_ANY_EXHDR(stored) == sizeof(digest->bytes) &&
           memcmp(VARDATA_ANY(stored), digest->bytes, sizeof(digest->bytes)) == 0;
}

/* Columns origin, size, root, note, key. */
static bool check_checkpoint(const LoraTree *tree, uint64 row, uint64 tree_size, Verdict *v)
{
    char *origin = lora_text(row, 1), *note = lora_text(row, 4), *key_text = lora_text(row, 5);
    int64 size = lora_int64(row, 2);
    bytea *stored = (bytea *)lora_varlena(row, 3);
    ol_buf expected = {0};
    ol_note_key key;
    ol_digest root;
    ol_error error;
    size_t len;
    bool same;

    if ((uint64)size > tree_size)
        return wrong(v, (int64)tree_size,
                     "the tree is shorter than checkpoint " INT64_FORMAT " of \"%s\"", size,
                     origin);
    if (ol_tree_root(&tree->tree, (uint64)size, &root, &error) != OL_OK)
        return wrong(v, 0, "%s", error.message);
    if (!key_text || ol_note_get_key(key_text, &key, &error) != OL_OK ||
        !ol_note_verify(note, strlen(note), &key, &len))
        return wrong(v, size, "the signature of checkpoint " INT64_FORMAT " of \"%s\" is not good",
                     size, origin);
    ol_checkpoint_put(&expected, origin, (uint64)size, &root);
    same = !expected.failed && expected.len == len && memcmp(expected.data, note, len) == 0 &&
           is_digest(stored, &root);
    ol_buf_free(&expected);
    return same ||
           wrong(v, size > 0 ? size - 1 : 0,
                 "the tree is not the one of checkpoint " INT64_FORMAT " of \"%s\"", size, origin);
}

static bool check_checkpoints(const LoraTree *tree, int64 from, uint64 tree_size, Verdict *v)
{
    static LoraStatement find = {
        "SELECT c.origin, c.size, c.root, c.note, k.key FROM openlora.checkpoints c"
        " LEFT JOIN openlora.ledger_keys k ON k.origin OPERATOR(pg_catalog.=) c.origin"
        " WHERE c.size OPERATOR(pg_catalog.>) $1 ORDER BY c.size",
        1,
        {INT8OID}};
    Datum value = Int64GetDatum(from);
    uint64 n = lora_execute(&find, &value, NULL, true);
    SPITupleTable *found = SPI_tuptable;

    for (uint64 row = 0; row < n; row++) {
        SPI_tuptable = found; /* reading the tree changes it */
        if (!check_checkpoint(tree, row, tree_size, v))
            return false;
    }
    return true;
}

/* The tables alone may have been written anew as a whole; the signer's file was not. */
static bool check_memory(const LoraTree *tree, const LoraSigned *last, uint64 tree_size, Verdict *v)
{
    ol_digest root;
    ol_error error;

    if (last->size > tree_size && RecoveryInProgress())
        return true; /* one memory for all copies, and this one has not caught up */
    if (last->size > tree_size)
        return wrong(v, (int64)tree_size,
                     "the tree is shorter than what was signed last, " UINT64_FORMAT
                     " receipts of \"%s\"",
                     last->size, last->origin);
    if (ol_tree_root(&tree->tree, last->size, &root, &error) != OL_OK)
        return wrong(v, 0, "%s", error.message);
    return ol_digest_equal(&root, &last->root) ||
           wrong(v, (int64)last->size - 1,
                 "the tree is not what was signed last, " UINT64_FORMAT " receipts of \"%s\"",
                 last->size, last->origin);
}

/* -- all --------------------------------------------------------------------------------- */

static void verify(int64 from, int64 to, bool to_end, const LoraSigned *last, Verdict *v)
{
    static LoraStatement beyond = {
        "SELECT leaf FROM openlora.receipts WHERE leaf OPERATOR(pg_catalog.>=) $1"
        " ORDER BY leaf LIMIT 1",
        1,
        {INT8OID}};
    uint64 size = lora_tree_size(false);
    Datum value = Int64GetDatum((int64)size);
    LoraTree tree;

    if (to_end || to > (int64)size)
        to = (int64)size;
    lora_tree_open(&tree);
    if (!check_receipts(from, to, v) || !check_tiles(&tree, from, to, v))
        return;
    if (to_end && lora_execute(&beyond, &value, NULL, true) > 0) {
        (void)wrong(v, lora_int64(0, 1), "receipt " INT64_FORMAT " is not in the tree",
                    lora_int64(0, 1));
        return;
    }
    if (from == 0 && to_end && !check_strays(size, v))
        return;
    if (check_checkpoints(&tree, from, size, v) && last->size > (uint64)from)
        (void)check_memory(&tree, last, size, v);
}

/* Before a snapshot is taken: it sees all that was signed. */
static LoraSigned read_memory(void)
{
    LoraSigned last;
    ol_error error;
    ol_code code = lora_signer_last(&last, &error);

    if (code != OL_OK && code != OL_NOT_FOUND)
        lora_raise(&error);
    return last;
}

/* lora_ledger_verify(from_leaf bigint, to_leaf bigint, OUT checked bigint, OUT bad bigint,
 * OUT problem text): both ends are included; NULL: all there are. */
Datum lora_ledger_verify(PG_FUNCTION_ARGS)
{
    int64 from = PG_ARGISNULL(0) ? 0 : PG_GETARG_INT64(0);
    int64 to = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT64(1) + 1;
    LoraSigned last = read_memory();
    Verdict v = {0};
    LoraIdentity caller;
    TupleDesc desc;
    Datum values[3];
    bool nulls[3] = {false};

    if (from < 0 || to < 0)
        ereport(ERROR,
                (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("receipts are numbered from 0")));
    if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "lora_ledger_verify must return a row");
    desc = BlessTupleDesc(desc);
    lora_connect();
    PushActiveSnapshot(GetLatestSnapshot());
    lora_become_owner(&caller);
    verify(from, to, PG_ARGISNULL(1), &last, &v);
    lora_become_caller(&caller);
    PopActiveSnapshot();
    SPI_finish();
    values[0] = Int64GetDatum(v.checked);
    values[1] = Int64GetDatum(v.bad);
    nulls[1] = nulls[2] = !v.problem[0];
    values[2] = CStringGetTextDatum(v.problem);
    PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
