/* quota.c: see quota.h. */
#include "quota.h"

#include <unistd.h>

#include "access/xact.h"
#include "pgstat.h"
#include "port/pg_crc32c.h"
#include "session.h"
#include "shared.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define MAX_COUNTERS 10000
#define FILE_NAME PGSTAT_STAT_PERMANENT_DIRECTORY "/openlora_quotas"
#define WRITE_EVERY_MS 5000

typedef struct Counter {
    LoraQuotaKey key;
    int64 tokens;   /* taken in this window */
    int64 reserved; /* by requests that run */
    int64 window;   /* number of the period since 2000, 0 where there is none */
    TimestampTz since;
    int concurrent;
} Counter;

/* Under its own lock, second of the tranche. */
typedef struct Control {
    uint64 changes; /* of `tokens`, since the server started */
} Control;

static Control *control;
static HTAB *counters;

static LWLock *quota_lock(void)
{
    return &GetNamedLWLockTranche("openlora")[1].lock;
}

/* -- counters: under the lock ------------------------------------------------------------- */

static bool is_idle(const Counter *c)
{
    return c->concurrent == 0 && c->reserved == 0;
}

/* Drops counters that say nothing: idle, with nothing taken. */
static void drop_empty(void)
{
    HASH_SEQ_STATUS scan;
    Counter *c;

    hash_seq_init(&scan, counters);
    while ((c = hash_seq_search(&scan)) != NULL)
        if (is_idle(c) && c->tokens == 0)
            (void)hash_search(counters, &c->key, HASH_REMOVE, NULL);
}

static Counter *counter_of(const LoraQuotaKey *key, bool make)
{
    bool found;
    Counter *c = hash_search(counters, key, HASH_FIND, NULL);

    if (c || !make)
        return c;
    if (hash_get_num_entries(counters) >= MAX_COUNTERS)
        drop_empty();
    if (hash_get_num_entries(counters) >= MAX_COUNTERS)
        return NULL;
    c = hash_search(counters, key, HASH_ENTER_NULL, &found);
    if (c && !found) {
        memset((char *)c + sizeof(c->key), 0, sizeof(*c) - sizeof(c->key));
        c->since = GetCurrentTimestamp();
    }
    return c;
}

/* Begins a new window when its time has come. */
static void turn_window(Counter *c, int64 period_us)
{
    int64 window = period_us ? GetCurrentTimestamp() / period_us : 0;

    if (window == c->window)
        return;
    c->window = window;
    c->tokens = 0;
    c->since = window * period_us;
    control->changes++;
}

static bool refuse_tokens(const LoraQuota *q, const Counter *c, int64 tokens, ol_error *error)
{
    if (q->tokens < 0 || c->tokens + c->reserved + tokens <= q->tokens)
        return false;
    ol_fail(error, OL_QUOTA, "the quota of tokens of %s is used up", q->what);
    ol_detail(error,
              INT64_FORMAT " of " INT64_FORMAT " tokens are used and " INT64_FORMAT
                           " reserved by requests that run; this one may take " INT64_FORMAT ".",
              c->tokens, q->tokens, c->reserved, tokens);
    if (q->period_us)
        ol_hint(error, "Ask for fewer with max_tokens, or wait until %s.",
                timestamptz_to_str(c->since + q->period_us));
    else
        ol_hint(error, "Ask for fewer with max_tokens, or for another grant.");
    return true;
}

static bool refuse_concurrent(const LoraQuota *q, const Counter *c, ol_error *error)
{
    if (q->concurrent < 0 || c->concurrent < q->concurrent)
        return false;
    ol_fail(error, OL_QUOTA, "too many sessions of %s ask at the same time", q->what);
    ol_detail(error, "The quota is %d.", q->concurrent);
    return true;
}

/* -- claims of this backend ------------------------------------------------------------------ */

typedef struct Claim {
    LoraQuotaClaim id;
    SubTransactionId begun_in;
    int64 reserved, taken;
    int n;
    LoraQuotaKey keys[LORA_MAX_QUOTAS];
} Claim;

static Claim *claims;
static int n_claims, max_claims;
static LoraQuotaClaim last_claim;

/* A session counts once, however many requests it has in flight: a scan that works ahead is
 * one that asks. */
static bool counts_already(const LoraQuotaKey *key, const Claim *but)
{
    for (int i = 0; i < n_claims; i++)
        for (int k = 0; &claims[i] != but && k < claims[i].n; k++)
            if (memcmp(&claims[i].keys[k], key, sizeof(*key)) == 0)
                return true;
    return false;
}

static void end_claim(int i)
{
    Claim *claim = &claims[i];

    LWLockAcquire(quota_lock(), LW_EXCLUSIVE);
    for (int k = 0; k < claim->n; k++) {
        Counter *c = counter_of(&claim->keys[k], false);

        if (!c)
            continue;
        c->reserved -= claim->reserved;
        if (!counts_already(&claim->keys[k], claim))
            c->concurrent--;
    }
    LWLockRelease(quota_lock());
    claims[i] = claims[--n_claims];
}

static void end_all(void)
{
    while (n_claims > 0)
        end_claim(n_claims - 1);
}

static void at_transaction_end(XactEvent event, void *arg)
{
    if (lora_session_outlives)
        return;
    if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PARALLEL_ABORT ||
        event == XACT_EVENT_COMMIT || event == XACT_EVENT_PREPARE)
        end_all();
}

static void at_subtransaction_end(SubXactEvent event, SubTransactionId id, SubTransactionId parent,
                                  void *arg)
{
    for (int i = n_claims - 1; i >= 0; i--) {
        if (claims[i].begun_in != id)
            continue;
        if (event == SUBXACT_EVENT_ABORT_SUB)
            end_claim(i);
        else if (event == SUBXACT_EVENT_COMMIT_SUB)
            claims[i].begun_in = parent;
    }
}

static void at_exit(int code, Datum arg)
{
    end_all();
}

static Claim *new_claim(void)
{
    static bool registered;

    if (!registered) {
        RegisterXactCallback(at_transaction_end, NULL);
        RegisterSubXactCallback(at_subtransaction_end, NULL);
        before_shmem_exit(at_exit, 0);
        registered = true;
    }
    if (n_claims == max_claims) {
        int max = max_claims ? 2 * max_claims : 16;

        if (claims)
            claims = repalloc(claims, sizeof(Claim) * (Size)max);
        else
            claims = MemoryContextAlloc(TopMemoryContext, sizeof(Claim) * (Size)max);
        max_claims = max;
    }
    return &claims[n_claims];
}

static Claim *find_claim(LoraQuotaClaim id)
{
    for (int i = 0; id && i < n_claims; i++)
        if (claims[i].id == id)
            return &claims[i];
    return NULL;
}

/* All or none; under the lock. */
static bool reserve_all(const LoraQuota *quotas, int n, int64 tokens, ol_error *error)
{
    for (int i = 0; i < n; i++) {
        Counter *c = counter_of(&quotas[i].key, true);

        if (!c) {
            ol_fail(error, OL_LIMIT, "too many quotas are being counted");
            ol_detail(error, "There can be at most %d.", MAX_COUNTERS);
            return false;
        }
        turn_window(c, quotas[i].period_us);
        if (!counts_already(&quotas[i].key, NULL) && refuse_concurrent(&quotas[i], c, error))
            return false;
        if (refuse_tokens(&quotas[i], c, tokens, error))
            return false;
    }
    for (int i = 0; i < n; i++) {
        Counter *c = counter_of(&quotas[i].key, false);

        c->reserved += tokens;
        if (!counts_already(&quotas[i].key, NULL))
            c->concurrent++;
    }
    return true;
}

bool lora_quota_claim(const LoraQuota *quotas, int n, int64 tokens, LoraQuotaClaim *id,
                      ol_error *error)
{
    Claim *claim;
    bool good;

    *id = 0;
    if (n == 0)
        return true;
    Assert(n <= LORA_MAX_QUOTAS);
    claim = new_claim();
    LWLockAcquire(quota_lock(), LW_EXCLUSIVE);
    good = reserve_all(quotas, n, tokens, error);
    LWLockRelease(quota_lock());
    if (!good)
        return false;
    claim->id = *id = ++last_claim;
    claim->begun_in = GetCurrentSubTransactionId();
    claim->reserved = tokens;
    claim->taken = 0;
    claim->n = n;
    for (int i = 0; i < n; i++)
        claim->keys[i] = quotas[i].key;
    n_claims++;
    return true;
}

void lora_quota_took(LoraQuotaClaim id, int64 tokens)
{
    Claim *claim = find_claim(id);
    int64 more, released;

    if (!claim || claim->taken == tokens)
        return;
    more = tokens - claim->taken;
    released = Max(Min(more, claim->reserved), -claim->taken);
    claim->taken = tokens;
    claim->reserved -= released;
    LWLockAcquire(quota_lock(), LW_EXCLUSIVE);
    for (int i = 0; i < claim->n; i++) {
        Counter *c = counter_of(&claim->keys[i], false);

        if (!c)
            continue;
        c->tokens = Max(c->tokens + more, 0); /* a window may have begun meanwhile */
        c->reserved -= released;
    }
    control->changes++;
    LWLockRelease(quota_lock());
}

void lora_quota_end(LoraQuotaClaim id)
{
    Claim *claim = find_claim(id);

    if (claim)
        end_claim((int)(claim - claims));
}

/* -- for the functions in access.c -------------------------------------------------------- */

void lora_quota_forget(const LoraQuotaKey *key)
{
    Counter *c;

    LWLockAcquire(quota_lock(), LW_EXCLUSIVE);
    c = counter_of(key, false);
    if (c) {
        c->tokens = 0;
        c->since = GetCurrentTimestamp();
        control->changes++;
    }
    LWLockRelease(quota_lock());
}

int lora_quota_list(Oid database, LoraQuotaState **list)
{
    HASH_SEQ_STATUS scan;
    Counter *c;
    int n = 0;

    *list = palloc(sizeof(LoraQuotaState) * MAX_COUNTERS);
    LWLockAcquire(quota_lock(), LW_SHARED);
    hash_seq_init(&scan, counters);
    while ((c = hash_seq_search(&scan)) != NULL)
        if (c->key.database == database)
            (*list)[n++] = (LoraQuotaState){.key = c->key,
                                            .tokens = c->tokens,
                                            .reserved = c->reserved,
                                            .concurrent = c->concurrent,
                                            .since = c->since};
    LWLockRelease(quota_lock());
    return n;
}

/* -- the file ------------------------------------------------------------------------------ */

#define FILE_MAGIC 0x4F4C5131u /* "OLQ1" */

typedef struct Record {
    LoraQuotaKey key;
    int64 tokens, window;
    TimestampTz since;
} Record;

typedef struct FileHeader {
    uint32 magic, count;
    pg_crc32c crc; /* of the records */
} FileHeader;

/* What is worth keeping, palloc'ed. */
static Record *collect(uint32 *count, uint64 *changes)
{
    Record *records = palloc0(sizeof(Record) * MAX_COUNTERS);
    HASH_SEQ_STATUS scan;
    Counter *c;

    *count = 0;
    LWLockAcquire(quota_lock(), LW_SHARED);
    *changes = control->changes;
    hash_seq_init(&scan, counters);
    while ((c = hash_seq_search(&scan)) != NULL)
        if (c->tokens > 0) {
            Record *r = &records[(*count)++];

            r->key = c->key;
            r->tokens = c->tokens;
            r->window = c->window;
            r->since = c->since;
        }
    LWLockRelease(quota_lock());
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

static void write_file(const Record *records, uint32 count)
{
    FILE *file = AllocateFile(FILE_NAME ".tmp", PG_BINARY_W);

    if (file && write_records(file, records, count) && FreeFile(file) == 0) {
        (void)durable_rename(FILE_NAME ".tmp", FILE_NAME, LOG);
        return;
    }
    ereport(LOG, (errcode_for_file_access(),
                  errmsg("could not write file \"%s\": %m", FILE_NAME ".tmp")));
}

static uint64 written; /* `changes` as of the last write of this process */

static void write_now(void)
{
    uint32 count;
    uint64 changes;
    Record *records = collect(&count, &changes);

    write_file(records, count);
    pfree(records);
    written = changes;
}

long lora_quota_write_if_due(void)
{
    static TimestampTz last;
    TimestampTz now = GetCurrentTimestamp();
    bool dirty;

    LWLockAcquire(quota_lock(), LW_SHARED);
    dirty = control->changes != written;
    LWLockRelease(quota_lock());
    if (!dirty)
        return -1;
    if (!TimestampDifferenceExceeds(last, now, WRITE_EVERY_MS))
        return WRITE_EVERY_MS - TimestampDifferenceMilliseconds(last, now);
    last = now;
    write_now();
    return -1;
}

static void take_records(const Record *records, uint32 count)
{
    for (uint32 i = 0; i < count; i++) {
        bool found;
        Counter *c = hash_search(counters, &records[i].key, HASH_ENTER_NULL, &found);

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
        header.count > MAX_COUNTERS)
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

/* In the postmaster, after everybody else has ended; not after a crash. */
static void write_at_shutdown(int code, Datum arg)
{
    if (code == 0 && control)
        write_now();
}

/* -- shared memory ---------------------------------------------------------------------------- */

Size lora_quota_shared_size(void)
{
    return add_size(sizeof(Control), hash_estimate_size(MAX_COUNTERS, sizeof(Counter)));
}

void lora_quota_startup_shared(void)
{
    HASHCTL info = {.keysize = sizeof(LoraQuotaKey), .entrysize = sizeof(Counter)};
    bool found;

    control = ShmemInitStruct("openlora quotas", sizeof(Control), &found);
    counters = ShmemInitHash("openlora quota counters", MAX_COUNTERS, MAX_COUNTERS, &info,
                             HASH_ELEM | HASH_BLOBS);
    if (found)
        return;
    memset(control, 0, sizeof(*control));
    if (!IsUnderPostmaster)
        on_shmem_exit(write_at_shutdown, 0);
    read_file();
}
