/*
 * ledger_file.c: receipts that do not fit in memory, in pg_stat/openlora_receipts.DATABASE.
 *
 * Who appends does not wait for the disk: the openlora worker makes all files safe, at most
 * once in SYNC_MS. So a power failure loses what was appended within that time, and the end of
 * processes nothing. The ledger process takes a file by another name, and removes it when all
 * of it is in the table; if it ends in between, the next one finds which receipts are there.
 */
#include "ledger_lane.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file_perm.h"
#include "database_worker.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/fd.h"
#include "utils/timestamp.h"

#define FOLDER "pg_stat"
#define PREFIX "openlora_receipts."
#define TAKEN ".taken" /* after the name: the ledger process is at it */
#define SYNC_MS 1000

static void path_of(Oid database, const char *suffix, char *path)
{
    snprintf(path, MAXPGPATH, "%s/%s%u%s", FOLDER, PREFIX, database, suffix);
}

/* -- in ---------------------------------------------------------------------------------------- */

static void add_crc(LoraReceipt *receipt)
{
    INIT_CRC32C(receipt->crc);
    COMP_CRC32C(receipt->crc, receipt, offsetof(LoraReceipt, crc));
    FIN_CRC32C(receipt->crc);
}

/* After what is whole: what a full disk has cut off is overwritten. */
static bool append(const char *path, const LoraReceipt *receipt)
{
    int file = OpenTransientFile(path, O_RDWR | O_CREAT | PG_BINARY);
    struct stat st;
    off_t whole;
    bool good;

    if (file < 0 || fstat(file, &st) != 0)
        return false;
    whole = st.st_size - st.st_size % (off_t)sizeof(*receipt);
    errno = 0;
    good = pg_pwrite(file, receipt, sizeof(*receipt), whole) == sizeof(*receipt);
    if (!good && errno == 0)
        errno = ENOSPC;
    return CloseTransientFile(file) == 0 && good;
}

void lora_file_append(const LoraReceipt *receipt)
{
    LoraReceipt copy = *receipt;
    char path[MAXPGPATH];

    add_crc(&copy);
    path_of(receipt->meter.database, "", path);
    if (!append(path, &copy))
        ereport(WARNING, (errcode_for_file_access(),
                          errmsg("openlora receipt of inference " INT64_FORMAT " is lost",
                                 receipt->meter.inference),
                          errdetail("It could not be written to file \"%s\": %m", path)));
    if (lora_lanes->unsynced == 0)
        lora_lanes->unsynced = GetCurrentTimestamp();
}

/* -- all files ------------------------------------------------------------------------------- */

/* The next file's database; InvalidOid at the end. */
static Oid next_file(DIR *folder, char *path)
{
    struct dirent *entry;

    while ((entry = ReadDirExtended(folder, FOLDER, LOG)) != NULL) {
        Oid database;

        if (strncmp(entry->d_name, PREFIX, strlen(PREFIX)) != 0)
            continue;
        snprintf(path, MAXPGPATH, "%s/%s", FOLDER, entry->d_name);
        database = (Oid)strtoul(entry->d_name + strlen(PREFIX), NULL, 10);
        if (OidIsValid(database))
            return database;
    }
    return InvalidOid;
}

static void sync_file(const char *path)
{
    int file = BasicOpenFile(path, O_RDWR | PG_BINARY);

    if (file < 0)
        return; /* it was removed meanwhile */
    if (pg_fsync(file) != 0)
        ereport(WARNING,
                (errcode_for_file_access(), errmsg("could not fsync file \"%s\": %m", path),
                 errdetail("A power failure may lose openlora receipts.")));
    close(file);
}

long lora_files_sync(bool now)
{
    char path[MAXPGPATH];
    TimestampTz since;
    DIR *folder;
    long left = 0;

    LWLockAcquire(lora_lanes->lock, LW_EXCLUSIVE);
    since = lora_lanes->unsynced;
    if (since != 0 && !now)
        left = SYNC_MS - TimestampDifferenceMilliseconds(since, GetCurrentTimestamp());
    if (left <= 0)
        lora_lanes->unsynced = 0;
    LWLockRelease(lora_lanes->lock);
    if (since == 0 || left > 0)
        return since == 0 ? -1 : left;
    folder = AllocateDir(FOLDER);
    while (OidIsValid(next_file(folder, path)))
        sync_file(path);
    FreeDir(folder);
    (void)fsync_fname_ext(FOLDER, true, true, LOG);
    return -1;
}

void lora_files_find(void)
{
    DIR *folder = AllocateDir(FOLDER);
    char path[MAXPGPATH];
    Oid database;

    while (OidIsValid(database = next_file(folder, path))) {
        LoraLane *lane;

        LWLockAcquire(lora_lanes->lock, LW_EXCLUSIVE);
        lane = lora_lane_of(database);
        if (lane)
            lane->filed = true;
        else
            lora_lanes->files_wait = true;
        LWLockRelease(lora_lanes->lock);
        if (lane)
            lora_database_worker_ensure(LORA_WORKER_LEDGER, database);
    }
    FreeDir(folder);
}

List *lora_files_databases(void)
{
    DIR *folder = AllocateDir(FOLDER);
    char path[MAXPGPATH];
    List *list = NIL;
    Oid database;

    while (OidIsValid(database = next_file(folder, path)))
        list = lappend_oid(list, database);
    FreeDir(folder);
    return list;
}

/* -- one file ---------------------------------------------------------------------------------- */

bool lora_file_waits(Oid database)
{
    char path[MAXPGPATH], taken[MAXPGPATH];
    struct stat st;

    path_of(database, "", path);
    path_of(database, TAKEN, taken);
    /* in the order in which one becomes the other */
    return stat(path, &st) == 0 || stat(taken, &st) == 0;
}

void lora_files_remove(Oid database)
{
    char path[MAXPGPATH];

    path_of(database, "", path);
    (void)unlink(path);
    path_of(database, TAKEN, path);
    (void)unlink(path);
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
        LWLockAcquire(lora_lanes->lock, LW_EXCLUSIVE);
        lora_lanes->lanes[lane].filed = false;
        if (rename(path, name) == 0)
            file = BasicOpenFile(name, O_RDONLY | PG_BINARY);
        LWLockRelease(lora_lanes->lock);
    }
    if (file < 0 && errno != ENOENT)
        ereport(ERROR, (errcode_for_file_access(), errmsg("could not open file \"%s\": %m", name)));
    return file;
}

bool lora_lane_read(int file, LoraReceipt *receipt)
{
    while (read(file, receipt, sizeof(*receipt)) == sizeof(*receipt)) {
        LoraReceipt copy = *receipt;

        add_crc(&copy);
        if (EQ_CRC32C(copy.crc, receipt->crc) && lora_receipt_is_sound(receipt))
            return true;
        ereport(WARNING, (errcode(ERRCODE_DATA_CORRUPTED),
                          errmsg("an openlora receipt in a file is damaged, and lost")));
    }
    return false;
}
