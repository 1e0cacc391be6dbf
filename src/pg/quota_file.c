/* quota_file.c: counters over a restart: read where they begin, written while they change and
 * where they end: see quota.h. */
#include "quota_internal.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "utils/timestamp.h"

#define FILE_NAME PGSTAT_STAT_PERMANENT_DIRECTORY "/openlora_quotas"
#define FILE_MAGIC 0x4F4C5131u /* "OLQ1" */
#define WRITE_EVERY_MS 5000

typedef struct Record {
    LoraQuotaKey key;
    int64 tokens, window;
    TimestampTz since;
} Record;

typedef struct FileHeader {
    uint32 magic, count;
    pg_crc32c crc; /* of the records */
} FileHeader;

/* -- writing ---------------------------------------------------------------------------------- */

/* What is worth keeping, palloc'ed. */
static Record *collect(uint32 *count, uint64 *changes)
{
    Record *records = palloc0(sizeof(Record) * LORA_MAX_COUNTERS);
    HASH_SEQ_STATUS scan;
    LoraQuotaCounter *c;

    *count = 0;
    LWLockAcquire(lora_quota_lock(), LW_SHARED);
    *changes = lora_quota_control->changes;
    hash_seq_init(&scan, lora_quota_table);
    while ((c = hash_seq_search(&scan)) != NULL)
        if (c->tokens > 0) {
            Record *r = &records[(*count)++];

            r->key = c->key;
            r->tokens = c->tokens;
            r->window = c->window;
            r->since = c->since;
        }
    LWLockRelease(lora_quota_lock());
    return records;
}

static bool write_records(FILE *file, const Record *records, uint32 count)
{
    FileHeader header = {.magic = FILE_MAGIC, .count = count};

    INIT_CRC32C(header.crc);
    COMP_CRC32C(header.crc, records, sizeof(Record) * count);
    FIN_CRC32C(header.crc);
    return fwrite(&header, sizeof(header), 1, file) == 1 &&
           fwrite(records, sizeof(Record), count, file) == count;
}

static bool write_file(const Record *records, uint32 count)
{
    FILE *file = AllocateFile(FILE_NAME ".tmp", PG_BINARY_W);
    bool good = file && write_records(file, records, count);
    int error = errno;

    if (file && FreeFile(file) != 0 && good) {
        good = false;
        error = errno;
    }
    errno = error;
    if (good)
        return durable_rename(FILE_NAME ".tmp", FILE_NAME, LOG) == 0;
    ereport(LOG, (errcode_for_file_access(),
                  errmsg("could not write file \"%s\": %m", FILE_NAME ".tmp")));
    return false;
}

static uint64 written; /* `changes` as of the last write of this process */

static bool write_now(void)
{
    uint32 count;
    uint64 changes;
    Record *records = collect(&count, &changes);
    bool good = write_file(records, count);

    pfree(records);
    if (good)
        written = changes;
    return good;
}

long lora_quota_write_if_due(void)
{
    static TimestampTz last;
    TimestampTz now = GetCurrentTimestamp();
    bool dirty;

    LWLockAcquire(lora_quota_lock(), LW_SHARED);
    dirty = lora_quota_control->changes != written;
    LWLockRelease(lora_quota_lock());
    if (!dirty)
        return -1;
    if (!TimestampDifferenceExceeds(last, now, WRITE_EVERY_MS))
        return WRITE_EVERY_MS - TimestampDifferenceMilliseconds(last, now);
    last = now;
    return write_now() ? -1 : WRITE_EVERY_MS;
}

/* -- reading ---------------------------------------------------------------------------------- */

static void take_records(const Record *records, uint32 count)
{
    for (uint32 i = 0; i < count; i++) {
        bool found;
        LoraQuotaCounter *c =
            hash_search(lora_quota_table, &records[i].key, HASH_ENTER_NULL, &found);

        if (!c)
            return;
        memset((char *)c + sizeof(c->key), 0, sizeof(*c) - sizeof(c->key));
        c->tokens = records[i].tokens;
        c->window = records[i].window;
        c->since = records[i].since;
    }
}

static bool read_records(FILE *file)
{
    FileHeader header;
    Record *records;
    pg_crc32c crc;
    bool good;

    if (fread(&header, sizeof(header), 1, file) != 1 || header.magic != FILE_MAGIC ||
        header.count > LORA_MAX_COUNTERS)
        return false;
    records = palloc(sizeof(Record) * (header.count + 1));
    good = fread(records, sizeof(Record), header.count, file) == header.count;
    INIT_CRC32C(crc);
    if (good)
        COMP_CRC32C(crc, records, sizeof(Record) * header.count);
    FIN_CRC32C(crc);
    good = good && EQ_CRC32C(crc, header.crc);
    if (good)
        take_records(records, header.count);
    pfree(records);
    return good;
}

static void read_file(void)
{
    FILE *file = AllocateFile(FILE_NAME, PG_BINARY_R);

    if (!file) {
        if (errno != ENOENT)
            ereport(LOG, (errcode_for_file_access(),
                          errmsg("could not read file \"%s\": %m", FILE_NAME)));
        return;
    }
    if (!read_records(file))
        ereport(LOG, (errmsg("ignoring invalid data in file \"%s\"", FILE_NAME),
                      errdetail("Quotas of openlora begin at zero.")));
    FreeFile(file);
}

/* -- a server's start and end ----------------------------------------------------------------- */

/* In the postmaster, after everybody else has ended; not after a crash. */
static void write_at_shutdown(int code, Datum arg)
{
    if (code == 0 && lora_quota_control)
        (void)write_now();
}

void lora_quota_startup_shared(void)
{
    if (!lora_quota_attach())
        return;
    if (!IsUnderPostmaster)
        on_shmem_exit(write_at_shutdown, 0);
    read_file();
}
