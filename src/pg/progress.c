/*
 * progress.c: see progress.h. Each backend writes its own entry alone, and holds LoraShared's
 * lock for the copying.
 */
#include "progress.h"

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
PG_FUNCTION_INFO_V1(lora_merge_jobs);

typedef struct Job {
    LoraJobKind kind;
    int phase, pid;
    Oid database, role;
    int64 subject, done, total;
    TimestampTz started;
    NameData how;
} Job;

static Job *jobs; /* as many as LoraShared has slots; NULL: not preloaded */

Size lora_progress_size(void)
{
    return mul_size(lora_shared_slots(), sizeof(Job));
}

void lora_progress_startup(void)
{
    bool found;

    jobs = ShmemInitStruct("openlora progress", lora_progress_size(), &found);
    if (!found)
        memset(jobs, 0, lora_progress_size());
}

/* -- this backend's ------------------------------------------------------------------------ */

static Job mine;

static void show(void)
{
    if (!jobs)
        return;
    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    jobs[lora_my_slot()] = mine;
    LWLockRelease(lora_shared->lock);
}

void lora_progress_begin(LoraJobKind kind, int64 subject, const char *how, Oid role)
{
    mine = (Job){.kind = kind,
                 .pid = MyProcPid,
                 .database = MyDatabaseId,
                 .role = role,
                 .subject = subject,
                 .started = GetCurrentTimestamp()};
    namestrcpy(&mine.how, how);
    show();
}

void lora_progress_phase(int phase, int64 total)
{
    mine.phase = phase;
    mine.done = 0;
    mine.total = total;
    show();
}

void lora_progress_done(int64 done)
{
    mine.done = done;
    show();
}

void lora_progress_end(int code, Datum arg)
{
    mine.kind = LORA_JOB_NONE;
    show();
}

/* -- the views ----------------------------------------------------------------------------- */

static bool may_see(const Job *job)
{
    return job->database == MyDatabaseId &&
           (has_privs_of_role(GetUserId(), job->role) ||
            has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS));
}

/* Jobs of a kind, as they are now, that the caller may see; palloc'ed. Returns how many. */
static int list_jobs(LoraJobKind kind, Job **list)
{
    int n_slots = jobs ? lora_shared_slots() : 0, n = 0;

    *list = palloc(sizeof(Job) * (Size)(n_slots + 1));
    if (!jobs)
        return 0;
    LWLockAcquire(lora_shared->lock, LW_SHARED);
    for (int i = 0; i < n_slots; i++)
        if (jobs[i].kind == kind)
            (*list)[n++] = jobs[i];
    LWLockRelease(lora_shared->lock);
    for (int i = n - 1; i >= 0; i--)
        if (!may_see(&(*list)[i]))
            (*list)[i] = (*list)[--n];
    return n;
}

/* openlora.trace_jobs() -> rows pid, role_id, dataset_id, phase, done, total, started */
Datum lora_trace_jobs(PG_FUNCTION_ARGS)
{
    static const char *const phases[] = {"reading documents", "sorting words", "writing chunks"};
    ReturnSetInfo *set = lora_begin_rows(fcinfo);
    Job *list;
    int n = list_jobs(LORA_JOB_TRACE, &list);

    for (const Job *j = list; j < list + n; j++) {
        Datum values[7] = {Int32GetDatum(j->pid),          ObjectIdGetDatum(j->role),
                           Int64GetDatum(j->subject),      CStringGetTextDatum(phases[j->phase]),
                           Int64GetDatum(j->done),         Int64GetDatum(j->total),
                           TimestampTzGetDatum(j->started)};
        bool nulls[7] = {false};

        tuplestore_putvalues(set->setResult, set->setDesc, values, nulls);
    }
    return (Datum)0;
}

/* openlora.merge_jobs() -> rows pid, role_id, method, adapters, phase, done, total, started */
Datum lora_merge_jobs(PG_FUNCTION_ARGS)
{
    static const char *const phases[] = {"reading adapters", "merging modules",
                                         "writing the new adapter"};
    ReturnSetInfo *set = lora_begin_rows(fcinfo);
    Job *list;
    int n = list_jobs(LORA_JOB_MERGE, &list);

    for (const Job *j = list; j < list + n; j++) {
        Datum values[8] = {Int32GetDatum(j->pid),
                           ObjectIdGetDatum(j->role),
                           CStringGetTextDatum(NameStr(j->how)),
                           Int32GetDatum((int32)j->subject),
                           CStringGetTextDatum(phases[j->phase]),
                           Int64GetDatum(j->done),
                           Int64GetDatum(j->total),
                           TimestampTzGetDatum(j->started)};
        bool nulls[8] = {false};

        tuplestore_putvalues(set->setResult, set->setDesc, values, nulls);
    }
    return (Datum)0;
}
