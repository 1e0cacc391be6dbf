/*
 * proofs.c: what can be shown to outsiders: lora_checkpoint, lora_receipt_proof,
 * lora_receipt_entry, lora_consistency_proof; and lora_ledger_create_key.
 *
 * A proof is of the newest checkpoint. One is asked for from the ledger process when the
 * ledger has grown; what is read here is committed.
 */
#include "lora_pg.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "ledger.h"
#include "ledger/note.h"
#include "ledger_entry.h"
#include "ledger_proofs.h"
#include "ledger_tree.h"
#include "miscadmin.h"
#include "spi.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(lora_checkpoint);
PG_FUNCTION_INFO_V1(lora_receipt_proof);
PG_FUNCTION_INFO_V1(lora_receipt_entry);
PG_FUNCTION_INFO_V1(lora_consistency_proof);
PG_FUNCTION_INFO_V1(lora_ledger_create_key);

/* -- beginning and end: as the tables' owner, under a snapshot of now ------------------------- */

static void begin(LoraIdentity *caller)
{
    lora_connect();
    PushActiveSnapshot(GetLatestSnapshot());
    lora_become_owner(caller);
}

static void end(const LoraIdentity *caller)
{
    lora_become_caller(caller);
    PopActiveSnapshot();
    SPI_finish();
}

static Datum text_of(ol_buf *buf)
{
    text *value;

    if (buf->failed)
        ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
    value = SPI_palloc(VARHDRSZ + buf->len);
    SET_VARSIZE(value, VARHDRSZ + buf->len);
    memcpy(VARDATA(value), buf->data, buf->len);
    ol_buf_free(buf);
    return PointerGetDatum(value);
}

static void must(ol_code code, const ol_error *error)
{
    if (code != OL_OK)
        lora_raise(error);
}

/* -- checkpoints ------------------------------------------------------------------------------ */

/* The newest of the present origin. Size -1: there is none. The note is in the caller's
 * context. */
int64 lora_newest_checkpoint(char **note)
{
    static LoraStatement find = {
        "SELECT size, note FROM openlora.checkpoints WHERE origin OPERATOR(pg_catalog.=)"
        " (SELECT k.origin FROM openlora.ledger_keys k ORDER BY k.id DESC LIMIT 1)"
        " ORDER BY size DESC LIMIT 1",
        0,
        {0}};

    *note = NULL;
    if (lora_execute(&find, NULL, NULL, true) == 0)
        return -1;
    *note = lora_text(0, 2);
    return lora_int64(0, 1);
}

static int64 newest_now(char **note, uint64 *size)
{
    LoraIdentity caller;
    int64 signed_size;

    begin(&caller);
    signed_size = lora_newest_checkpoint(note);
    *size = lora_tree_size(false);
    end(&caller);
    return signed_size;
}

/* One that has leaf `leaf` (-1: one of all receipts). */
static int64 checkpoint_with(int64 leaf, char **note)
{
    ol_error error;
    uint64 size;
    int64 signed_size = newest_now(note, &size);

    if (leaf >= 0 ? signed_size > leaf : signed_size == (int64)size)
        return signed_size;
    if (RecoveryInProgress()) {
        if (signed_size > 0 && leaf < 0)
            return signed_size;
        ereport(ERROR, (errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
                        errmsg("a standby signs no checkpoint"),
                        errhint("Ask the primary; what it has signed arrives here, too.")));
    }
    if (!lora_check_preloaded(&error))
        lora_raise(&error);
    must(lora_ledger_ask(LORA_ASK_SIGN, "", &error), &error);
    return newest_now(note, &size);
}

Datum lora_checkpoint(PG_FUNCTION_ARGS)
{
    char *note;

    (void)checkpoint_with(-1, &note);
    if (!note)
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("there is no checkpoint")));
    PG_RETURN_TEXT_P(cstring_to_text(note));
}

/* lora_ledger_create_key(origin text, another boolean) -> the key to verify with */
Datum lora_ledger_create_key(PG_FUNCTION_ARGS)
{
    static LoraStatement find = {
        "SELECT key FROM openlora.ledger_keys ORDER BY id DESC LIMIT 1", 0, {0}};
    char *origin = text_to_cstring(PG_GETARG_TEXT_PP(0)), *key = NULL;
    LoraIdentity caller;
    ol_error error;

    PreventCommandIfReadOnly("lora_ledger_create_key()");
    if (!lora_check_preloaded(&error))
        lora_raise(&error);
    must(ol_note_check_name(origin, &error), &error);
    must(lora_ledger_ask(PG_GETARG_BOOL(1) ? LORA_ASK_REPLACE : LORA_ASK_CREATE, origin, &error),
         &error);
    begin(&caller);
    if (lora_execute(&find, NULL, NULL, true) == 1)
        key = lora_text(0, 1);
    end(&caller);
    PG_RETURN_TEXT_P(cstring_to_text(key ? key : ""));
}

/* -- proofs ------------------------------------------------------------------------------------ */

/* A receipt that the caller may not see is one that does not exist. With the caller's
 * rights: row-level security answers. */
static void check_visible(int64 leaf)
{
    static LoraStatement find = {
        "SELECT 1 FROM openlora.receipts WHERE leaf OPERATOR(pg_catalog.=) $1", 1, {INT8OID}};
    Datum value = Int64GetDatum(leaf);

    lora_connect();
    if (lora_read_latest(&find, &value) == 0)
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
                        errmsg("receipt " INT64_FORMAT " does not exist", leaf)));
    SPI_finish();
}

Datum lora_receipt_proof(PG_FUNCTION_ARGS)
{
    int64 leaf = PG_GETARG_INT64(0), size;
    ol_digest proof[OL_TREE_MAX_PROOF];
    LoraIdentity caller;
    ol_buf out = {0};
    LoraTree tree;
    ol_error error;
    char *note;
    Datum value;
    int n;

    check_visible(leaf);
    size = checkpoint_with(leaf, &note);
    if (size <= leaf)
        ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
                        errmsg("receipt " INT64_FORMAT " is not in the ledger's tree", leaf),
                        errhint("lora_ledger_verify() tells what is wrong.")));
    begin(&caller);
    lora_tree_open(&tree);
    must(ol_tree_inclusion(&tree.tree, (uint64)leaf, (uint64)size, proof, &n, &error), &error);
    ol_proof_put(&out, (uint64)leaf, proof, n, note, strlen(note));
    value = text_of(&out);
    end(&caller);
    PG_RETURN_DATUM(value);
}

/* The bytes that the proof is of. */
Datum lora_receipt_entry(PG_FUNCTION_ARGS)
{
    static LoraStatement find = {"SELECT " LORA_ENTRY_COLUMNS
                                 " FROM openlora.receipts WHERE leaf OPERATOR(pg_catalog.=) $1",
                                 1,
                                 {INT8OID}};
    Datum leaf = PG_GETARG_DATUM(0), value;
    LoraIdentity caller;
    ol_buf out = {0};

    check_visible(DatumGetInt64(leaf));
    begin(&caller);
    if (lora_execute(&find, &leaf, NULL, true) == 1)
        lora_must_be_entry(0, &out);
    value = text_of(&out);
    end(&caller);
    PG_RETURN_DATUM(value);
}

Datum lora_consistency_proof(PG_FUNCTION_ARGS)
{
    ol_digest proof[OL_TREE_MAX_PROOF];
    LoraIdentity caller;
    ol_buf out = {0};
    LoraTree tree;
    ol_error error;
    Datum value;
    int n;

    if (PG_GETARG_INT64(0) < 1 || PG_GETARG_INT64(1) < PG_GETARG_INT64(0))
        ereport(ERROR,
                (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                 errmsg("a consistency proof is from a size of at least 1 to a larger one")));
    begin(&caller);
    if ((uint64)PG_GETARG_INT64(1) > lora_tree_size(false))
        ereport(ERROR,
                (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                 errmsg("the ledger has only " UINT64_FORMAT " receipts", lora_tree_size(false))));
    lora_tree_open(&tree);
    must(ol_tree_consistency(&tree.tree, (uint64)PG_GETARG_INT64(0), (uint64)PG_GETARG_INT64(1),
                             proof, &n, &error),
         &error);
    ol_hashes_put(&out, proof, n);
    value = text_of(&out);
    end(&caller);
    PG_RETURN_DATUM(value);
}
