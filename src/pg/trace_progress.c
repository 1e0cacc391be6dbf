/*
 * trace_progress.c: see trace_progress.h. Each backend writes its own entry alone, and holds
 * LoraShared's lock for the copying.
 */
#include "trace_progress.h"

#include "catalog/pg_authid.h"
#include "miscadmin.h"
#include "rows.h"
#include "shared.h"
#include "storage/shmem.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(lora_trace_jobs);

typedef struct TraceJob {
    TracePhase phase; /* TRACE_IDLE: no job */
    int pid;
    Oid database, role;
    int64 dataset, done, total;
    TimestampTz started;
} TraceJob;

static TraceJob *jobs; /* as many as LoraShared has slots; NULL: not preloaded */

Size lora_trace_progress_size(void)
{
    return mul_size(lora_shared_slots(), sizeof(TraceJob));
}

void lora_trace_progress_startup(void)
{
    bool found;

    jobs = ShmemInitStruct("openlora trace", lora_trace_progress_size(), &found);
    if (!found)
        memset(jobs, 0, lora_trace_progress_size());
}

static void set(const TraceJob *job)
{
    if (!jobs)
        return;
    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    jobs[lora_my_slot()] = *job;
    LWLockRelease(lora_shared->lock);
}

static TraceJob mine; /* this backend's */

void lora_trace_progress_begin(int64 dataset, Oid role)
{
    mine = (TraceJob){.phase = TRACE_READING,
                      .pid = MyProcPid,
                      .database = MyDatabaseId,
                      .role = role,
                      .dataset = dataset,
                      .started = GetCurrentTimestamp()};
    set(&mine);
}

void lora_trace_progress_phase(TracePhase phase, int64 total)
{
    mine.phase = phase;
    mine.done = 0;
    mine.total = total;
    set(&mine);
}

void lora_trace_progress_done(int64 done)
{
    mine.done = done;
    set(&mine);
}

void lora_trace_progress_end(int code, Datum arg)
{
    mine.phase = TRACE_IDLE;
    set(&mine);
}

/* -- the view ------------------------------------------------------------------------------ */

static bool may_see(const TraceJob *job)
{
    return job->phase != TRACE_IDLE && job->database == MyDatabaseId &&
           (has_privs_of_role(GetUserId(), job->role) ||
            has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS));
}

static void put_job(ReturnSetInfo *set, const TraceJob *job)
{
    static const char *const phases[] = {"", "reading documents", "sorting words",
                                         "writing chunks"};
    Datum values[7] = {Int32GetDatum(job->pid),          ObjectIdGetDatum(job->role),
                       Int64GetDatum(job->dataset),      CStringGetTextDatum(phases[job->phase]),
                       Int64GetDatum(job->done),         Int64GetDatum(job->total),
                       TimestampTzGetDatum(job->started)};
    bool nulls[7] = {false};

    tuplestore_putvalues(set->setResult, set->setDesc, values, nulls);
}

/* openlora.trace_jobs() -> rows pid, role_id, dataset_id, phase, done, total, started */
Datum lora_trace_jobs(PG_FUNCTION_ARGS)
{
    ReturnSetInfo *set = lora_begin_rows(fcinfo);
    TraceJob *copy;
    int n;

    if (!jobs)
        return (Datum)0;
    n = lora_shared_slots();
    copy = palloc(sizeof(TraceJob) * (Size)n);
    LWLockAcquire(lora_shared->lock, LW_SHARED);
    memcpy(copy, jobs, sizeof(TraceJob) * (Size)n);
    LWLockRelease(lora_shared->lock);
    for (int i = 0; i < n; i++)
        if (may_see(&copy[i]))
            put_job(set, &copy[i]);
    return (Datum)0;
}
