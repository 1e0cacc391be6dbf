/*
 * ledger_export.c: lora_ledger_export: a folder that any web server can serve, in C2SP's
 * tlog-tiles: checkpoint, tile/LEVEL/N and tile/entries/N, of the newest checkpoint.
 */
#include "lora_pg.h"

#include <sys/stat.h>
#include <unistd.h>

#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "ledger/note.h"
#include "ledger_entry.h"
#include "ledger_proofs.h"
#include "ledger_tree.h"
#include "spi.h"
#include "storage/fd.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(lora_ledger_export);

typedef struct Export {
    const char *folder;
    LoraTree tree;
    int64 files;
} Export;

/* -- files ------------------------------------------------------------------------------------- */

static void make_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(path, S_IRWXU | S_IRGRP | S_IXGRP | S_IROTH | S_IXOTH) != 0 && errno != EEXIST)
            ereport(ERROR, (errcode_for_file_access(),
                            errmsg("could not create directory \"%s\": %m", path)));
        *slash = '/';
    }
}

/* As one: whoever serves the folder meanwhile has the old file or the new. */
static void write_file(Export *ex, const char *name, const ol_buf *bytes)
{
    char path[MAXPGPATH], fresh[MAXPGPATH];
    FILE *file;

    if (snprintf(path, sizeof(path), "%s/%s", ex->folder, name) >= MAXPGPATH - 8)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("the path \"%s/%s\" is too long", ex->folder, name)));
    if (bytes->failed)
        ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
    make_folders(path);
    snprintf(fresh, sizeof(fresh), "%.*s.new", MAXPGPATH - 5, path);
    file = AllocateFile(fresh, PG_BINARY_W);
    if (!file || fwrite(bytes->data, 1, bytes->len, file) != bytes->len || FreeFile(file) != 0)
        ereport(ERROR,
                (errcode_for_file_access(), errmsg("could not write file \"%s\": %m", fresh)));
    if (rename(fresh, path) != 0)
        ereport(ERROR, (errcode_for_file_access(),
                        errmsg("could not rename file \"%s\" to \"%s\": %m", fresh, path)));
    ex->files++;
}

static const char *tile_name(int level, int64 number, int width, ol_buf *name)
{
    ol_buf_reset(name);
    ol_tile_path(name, level, (uint64)number, width);
    ol_buf_put_u8(name, 0);
    return (const char *)name->data;
}

/* -- tiles ------------------------------------------------------------------------------- */

static void put_hashes(Export *ex, int level, int64 first, int n, ol_buf *out)
{
    ol_digest hashes[OL_TILE_WIDTH];
    ol_error error;

    if (ex->tree.tree.read(ex->tree.tree.context, level, (uint64)first, n, hashes, &error) != OL_OK)
        lora_raise(&error);
    for (int i = 0; i < n; i++)
        ol_buf_put(out, hashes[i].bytes, OL_DIGEST_BYTES);
}

/* Each entry after its length: two bytes, the more significant one first. */
static void put_entries(int64 first, int n, ol_buf *out)
{
    static LoraStatement find = {
        "SELECT " LORA_ENTRY_COLUMNS " FROM openlora.receipts"
        " WHERE leaf OPERATOR(pg_catalog.>=) $1 AND leaf OPERATOR(pg_catalog.<) $2 ORDER BY leaf",
        2,
        {INT8OID, INT8OID}};
    Datum values[2] = {Int64GetDatum(first), Int64GetDatum(first + n)};

    if (lora_execute(&find, values, NULL, true) != (uint64)n)
        ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
                        errmsg("receipts are missing after " INT64_FORMAT, first),
                        errhint("lora_ledger_verify() tells what is wrong.")));
    for (int row = 0; row < n; row++) {
        ol_buf entry = {0};

        lora_must_be_entry((uint64)row, &entry);
        ol_buf_put_u8(out, (uint8_t)(entry.len >> 8));
        ol_buf_put_u8(out, (uint8_t)entry.len);
        ol_buf_put(out, entry.data, entry.len);
        ol_buf_free(&entry);
    }
    SPI_freetuptable(SPI_tuptable);
}

/* Level -1: the entries. The last tile may be partial. */
static void export_level(Export *ex, int level, int64 n)
{
    MemoryContext rows =
        AllocSetContextCreate(CurrentMemoryContext, "openlora export", ALLOCSET_DEFAULT_SIZES);
    ol_buf name = {0}, bytes = {0};

    for (int64 tile = 0; tile * OL_TILE_WIDTH < n; tile++) {
        MemoryContext before = MemoryContextSwitchTo(rows);
        int64 first = tile * OL_TILE_WIDTH;
        int width = (int)Min(n - first, OL_TILE_WIDTH);

        CHECK_FOR_INTERRUPTS();
        ol_buf_reset(&bytes);
        if (level < 0)
            put_entries(first, width, &bytes);
        else
            put_hashes(ex, level, first, width, &bytes);
        write_file(ex, tile_name(level, tile, width, &name), &bytes);
        MemoryContextSwitchTo(before);
        MemoryContextReset(rows);
    }
    ol_buf_free(&name);
    ol_buf_free(&bytes);
    MemoryContextDelete(rows);
}

/* The checkpoint comes last, when all is there that it promises. */
static void export_all(Export *ex)
{
    ol_buf bytes = {0};
    char *note;
    int64 size = lora_newest_checkpoint(&note);

    if (size < 0)
        ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                        errmsg("there is no checkpoint"), errhint("lora_checkpoint() makes one.")));
    lora_tree_open(&ex->tree);
    export_level(ex, -1, size);
    for (int level = 0; size > 0; level++, size /= OL_TILE_WIDTH)
        export_level(ex, level, size);
    ol_buf_put(&bytes, note, strlen(note));
    write_file(ex, "checkpoint", &bytes);
    ol_buf_free(&bytes);
}

/* lora_ledger_export(folder text) -> how many files were written */
Datum lora_ledger_export(PG_FUNCTION_ARGS)
{
    Export ex = {.folder = text_to_cstring(PG_GETARG_TEXT_PP(0))};
    LoraIdentity caller;

    if (!has_privs_of_role(GetUserId(), ROLE_PG_WRITE_SERVER_FILES))
        ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                        errmsg("permission denied to write files of the server"),
                        errhint("This needs the role pg_write_server_files.")));
    if (!is_absolute_path(ex.folder))
        ereport(ERROR,
                (errcode(ERRCODE_INVALID_NAME), errmsg("the folder's path must be absolute")));
    lora_connect();
    PushActiveSnapshot(GetLatestSnapshot());
    lora_become_owner(&caller);
    export_all(&ex);
    lora_become_caller(&caller);
    PopActiveSnapshot();
    SPI_finish();
    PG_RETURN_INT64(ex.files);
}
