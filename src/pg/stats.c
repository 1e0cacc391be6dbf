/*
 * stats.c: what goes on in the engine, for the views openlora.stat_*.
 *
 * Requests and adapters are asked of the engine; its counters come with its report. A reset of
 * these is a memory of them in shared memory: the views subtract it, as long as it is of the
 * engine that runs. Adapters' counts the engine itself begins again.
 */
#include "lora_pg.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "engine_ask.h"
#include "lib/stringinfo.h"
#include "rows.h"
#include "shared.h"
#include "spi.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "wire/stats.h"

PG_FUNCTION_INFO_V1(lora_stat_requests);
PG_FUNCTION_INFO_V1(lora_stat_adapters);
PG_FUNCTION_INFO_V1(lora_stat_engine);
PG_FUNCTION_INFO_V1(lora_stat_reset);

static void need_preload(void)
{
    ol_error error;

    if (!lora_check_preloaded(&error))
        lora_raise(&error);
}

/* Where no engine is ready there is nothing to tell, and nothing to wait for. */
static bool engine_is_ready(void)
{
    bool ready;

    LWLockAcquire(lora_shared->lock, LW_SHARED);
    ready = lora_shared->engine == LORA_ENGINE_READY;
    LWLockRelease(lora_shared->lock);
    return ready;
}

static ol_reader ask(ol_wire_stats which)
{
    StringInfoData rows;
    ol_error error;

    initStringInfo(&rows);
    if (engine_is_ready() && !lora_ask_stats((uint8)which, &rows, &error))
        lora_raise(&error);
    return ol_reader_over((const uint8_t *)rows.data, (Size)rows.len);
}

static void check_rows(const ol_reader *r)
{
    if (r->bad)
        ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
                        errmsg("the openlora engine sent malformed statistics")));
}

static Datum interval_datum(uint64 us)
{
    Interval *interval = palloc0(sizeof(*interval));

    interval->time = (int64)us;
    return IntervalPGetDatum(interval);
}

/* -- requests ---------------------------------------------------------------------------- */

/* Of the backend whose session it is; 0 when it has gone meanwhile. */
static int pid_of(uint32 session)
{
    int pid = 0;

    if (session == 0 || session > (uint32)lora_shared->n_slots)
        return 0;
    LWLockAcquire(lora_shared->lock, LW_SHARED);
    pid = lora_shared->slots[session - 1].pid;
    LWLockRelease(lora_shared->lock);
    return pid;
}

static Datum digests_datum(const ol_request_stat *s)
{
    Datum digests[OL_MAX_REQUEST_ADAPTERS];

    for (int i = 0; i < s->n_adapters; i++)
        digests[i] = lora_digest_datum(&s->adapters[i]);
    return PointerGetDatum(
        construct_array(digests, s->n_adapters, BYTEAOID, -1, false, TYPALIGN_INT));
}

#define REQUEST_COLUMNS 13
#define REQUEST_PUBLIC 2 /* columns that everybody sees, as in pg_stat_activity */

static void put_request(ReturnSetInfo *set, const ol_request_stat *s, bool all)
{
    static const char *const tasks[] = {"generate", "score"};
    static const char *const states[] = {"needs adapters", "queued", "running"};
    int pid = pid_of(s->session);
    bool mine = all || has_privs_of_role(GetUserId(), s->tenant);
    Datum values[REQUEST_COLUMNS] = {Int32GetDatum(pid),
                                     ObjectIdGetDatum(s->tenant),
                                     CStringGetTextDatum(tasks[s->task]),
                                     CStringGetTextDatum(states[s->state]),
                                     Int32GetDatum(s->priority),
                                     digests_datum(s),
                                     Int32GetDatum(s->prompt_tokens),
                                     Int32GetDatum(s->cached_tokens),
                                     Int32GetDatum(s->output_tokens),
                                     Int32GetDatum(s->computed_tokens),
                                     Int32GetDatum(s->preempted),
                                     interval_datum(s->age_us),
                                     interval_datum(s->running_us)};
    bool nulls[REQUEST_COLUMNS] = {pid == 0};

    for (int i = REQUEST_PUBLIC; i < REQUEST_COLUMNS; i++)
        nulls[i] = !mine;
    tuplestore_putvalues(set->setResult, set->setDesc, values, nulls);
}

Datum lora_stat_requests(PG_FUNCTION_ARGS)
{
    ReturnSetInfo *set;
    ol_request_stat stat;
    ol_reader r;
    bool all = has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);

    need_preload();
    set = lora_begin_rows(fcinfo);
    r = ask(OL_STATS_REQUESTS);
    while (ol_wire_get_request_stat(&r, &stat))
        put_request(set, &stat, all);
    check_rows(&r);
    return (Datum)0;
}

/* -- adapters ------------------------------------------------------------------------------- */

#define ADAPTER_COLUMNS 9

static List *read_adapters(void)
{
    ol_reader r = ask(OL_STATS_ADAPTERS);
    List *stats = NIL;
    ol_adapter_stat s;

    while (ol_wire_get_adapter_stat(&r, &s)) {
        stats = lappend(stats, palloc(sizeof(s)));
        memcpy(llast(stats), &s, sizeof(s));
    }
    check_rows(&r);
    return stats;
}

/* Which of them the caller sees, as numbers from 1 on: who has a file can tell by its digest that
 * others use it. How many is returned; they are the last result's rows. */
static uint64 find_visible(List *stats)
{
    static LoraStatement find = {
        "SELECT s.i FROM pg_catalog.unnest($1) WITH ORDINALITY AS s (digest, i) WHERE EXISTS"
        " (SELECT FROM openlora.adapters a WHERE a.digest OPERATOR(pg_catalog.=) s.digest)"
        " ORDER BY s.i",
        1,
        {BYTEAARRAYOID}};
    Datum *digests = palloc(sizeof(Datum) * (Size)(list_length(stats) + 1)), array;
    ListCell *cell;

    foreach (cell, stats)
        digests[foreach_current_index(cell)] =
            lora_digest_datum(&((ol_adapter_stat *)lfirst(cell))->digest);
    array = PointerGetDatum(
        construct_array(digests, list_length(stats), BYTEAOID, -1, false, TYPALIGN_INT));
    return lora_execute(&find, &array, NULL, true);
}

static void put_adapter(ReturnSetInfo *set, const ol_adapter_stat *s, TimestampTz now)
{
    const char *tier = s->resident  ? "device"
                       : s->loading ? "loading"
                       : s->copied  ? "host"
                                    : "none";
    Datum values[ADAPTER_COLUMNS] = {lora_digest_datum(&s->digest),
                                     CStringGetTextDatum(tier),
                                     Int64GetDatum((int64)s->bytes),
                                     Int32GetDatum(s->requests),
                                     Int64GetDatum((int64)s->hits),
                                     Int64GetDatum((int64)s->misses),
                                     Int64GetDatum((int64)s->loads),
                                     Float8GetDatum((double)s->load_us / 1000),
                                     TimestampTzGetDatum(now - (int64)s->idle_us)};
    bool nulls[ADAPTER_COLUMNS] = {false};

    nulls[2] = s->bytes == 0;
    tuplestore_putvalues(set->setResult, set->setDesc, values, nulls);
}

Datum lora_stat_adapters(PG_FUNCTION_ARGS)
{
    TimestampTz now = GetCurrentTimestamp();
    ReturnSetInfo *set;
    List *stats;
    bool is_null;
    uint64 n;

    need_preload();
    set = lora_begin_rows(fcinfo);
    stats = read_adapters();
    lora_connect();
    n = find_visible(stats);
    for (uint64 row = 0; row < n; row++)
        put_adapter(set, list_nth(stats, (int)DatumGetInt64(lora_value(row, 1, &is_null)) - 1),
                    now);
    SPI_finish();
    return (Datum)0;
}

/* -- the engine ------------------------------------------------------------------------------ */

#define COUNTERS 16

/* In the order of openlora.engine_counters' columns. */
static void list_counters(const ol_engine_info *i, uint64 *counters)
{
    const uint64 all[COUNTERS] = {
        i->requests,      i->failed,        i->cancelled,         i->rejected,
        i->prompt_tokens, i->cached_tokens, i->generated_tokens,  i->steps,
        i->rows,          i->sequences,     i->busy_us,           i->preemptions,
        i->adapter_loads, i->adapter_hits,  i->adapter_evictions, i->adapter_copy_loads};

    memcpy(counters, all, sizeof(all));
}

Datum lora_stat_engine(PG_FUNCTION_ARGS)
{
    uint64 now[COUNTERS], then[COUNTERS] = {0};
    Datum values[COUNTERS + 1];
    bool nulls[COUNTERS + 1] = {false};
    TupleDesc desc;
    TimestampTz since;

    need_preload();
    lora_refresh_status();
    if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "lora_stat_engine must return a row");
    LWLockAcquire(lora_shared->lock, LW_SHARED);
    list_counters(&lora_shared->info, now);
    since = lora_shared->engine_since;
    if (lora_shared->reset_generation == lora_shared->generation) {
        list_counters(&lora_shared->reset_info, then);
        since = lora_shared->reset_at;
    }
    LWLockRelease(lora_shared->lock);
    for (int i = 0; i < COUNTERS; i++)
        values[i] = Int64GetDatum((int64)(now[i] >= then[i] ? now[i] - then[i] : 0));
    values[COUNTERS] = TimestampTzGetDatum(since);
    nulls[COUNTERS] = since == 0;
    return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

Datum lora_stat_reset(PG_FUNCTION_ARGS)
{
    need_preload();
    (void)ask(OL_STATS_RESET);
    lora_refresh_status();
    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    lora_shared->reset_info = lora_shared->info;
    lora_shared->reset_generation = lora_shared->generation;
    lora_shared->reset_at = GetCurrentTimestamp();
    LWLockRelease(lora_shared->lock);
    PG_RETURN_VOID();
}
