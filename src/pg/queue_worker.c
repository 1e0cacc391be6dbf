/*
 * queue_worker.c: answers what lora_submit has queued: see queue.h.
 *
 * One loop: take frames of the engine, end what has ended, begin what waits, sleep. Requests
 * live across transactions (lora_session_outlives); each step that writes is a transaction
 * of its own. Whatever is 'running' when a worker begins was an earlier worker's.
 */
#include "queue.h"

#include "access/xact.h"
#include "arguments.h"
#include "attribution.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "database_worker.h"
#include "queue_rows.h"
#include "session.h"
#include "shared.h"
#include "spi.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utf8.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#define LOCK_FIELD 0x6c72
#define RETRY_MS 1000   /* what somebody else holds is looked at again */
#define EXPIRE_MS 60000 /* old rows are deleted so often while it is never idle */

static LoraQueueItem *items; /* in flight, or ended and not written yet */
static int n_items;
static bool look;  /* there may be rows to begin */
static bool again; /* look after a while, whether or not somebody says so */
static TimestampTz expired_at;

/* -- in a transaction -------------------------------------------------------------------- */

/* Errors that another attempt may not meet. */
static bool is_transient(int sqlstate)
{
    int category = ERRCODE_TO_CATEGORY(sqlstate);

    return category == ERRCODE_INSUFFICIENT_RESOURCES || category == ERRCODE_TRANSACTION_ROLLBACK ||
           category == ERRCODE_SYSTEM_ERROR;
}

/* Runs work(item) in a transaction. False when it raised: the item has the error. Being told
 * to stop is no error of the item's. */
static bool try(void (*work)(LoraQueueItem *), LoraQueueItem *item)
{
    volatile bool good = true;

    PG_TRY();
    {
        lora_begin_work();
        work(item);
        lora_commit_work();
    }
    PG_CATCH();
    {
        ErrorData *raised;

        MemoryContextSwitchTo(item->context);
        raised = CopyErrorData();
        if (raised->sqlerrcode == ERRCODE_QUERY_CANCELED)
            PG_RE_THROW();
        FlushErrorState();
        AbortCurrentTransaction();
        MemoryContextSwitchTo(TopMemoryContext);
        lora_queue_set_end(item,
                           is_transient(raised->sqlerrcode) ? LORA_END_AGAIN : LORA_END_FAILED,
                           raised->sqlerrcode, raised->message);
        good = false;
    }
    PG_END_TRY();
    return good;
}

/* -- an item's life ---------------------------------------------------------------------- */

static void drop_item(LoraQueueItem *item)
{
    LoraQueueItem **at = &items;

    while (*at != item)
        at = &(*at)->next;
    *at = item->next;
    n_items--;
    MemoryContextDelete(item->context); /* cancels what runs */
}

/* An error value of the request, or of its beginning. `alone`: nothing else is in flight. */
static void set_error(LoraQueueItem *item, const ol_error *error, bool begun)
{
    bool alone = n_items == 1;
    LoraQueueEnd end = LORA_END_FAILED;

    if (error->code == OL_LOST)
        end = begun ? LORA_END_AGAIN : LORA_END_UNCOUNTED;
    else if (error->code == OL_BUSY || (error->code == OL_QUOTA && !alone))
        end = LORA_END_UNCOUNTED; /* room comes when others end */
    if (end == LORA_END_UNCOUNTED && alone)
        again = true;
    if (end == LORA_END_UNCOUNTED)
        item->refused = true;
    lora_queue_set_end(item, end, lora_sqlstate(error->code), lora_from_utf8(error->message));
}

static void start_as_role(LoraQueueItem *item)
{
    LOCAL_FCINFO(fcinfo, LORA_ARG_LOGPROBS);
    ol_error error;

    if (!lora_queue_read_arguments(item, fcinfo))
        return; /* it was cancelled or deleted */
    if (!lora_queue_check_role(item))
        return;
    MemoryContextSwitchTo(item->context);
    SetUserIdAndSecContext(item->role, SECURITY_LOCAL_USERID_CHANGE);
    lora_priority = item->priority;
    lora_tenant_weight = item->tenant_weight;
    if (lora_spec_from_arguments(fcinfo, "lora_submit", &item->spec, &error))
        item->request = lora_request_start(&item->spec, false, &error);
    if (!item->request)
        set_error(item, &error, false);
}

static void start_item(LoraQueueItem *item)
{
    Oid user;
    int context;

    GetUserIdAndSecContext(&user, &context);
    start_as_role(item);
    SetUserIdAndSecContext(user, context);
}

/* The answer, its attribution and the row's new state. */
static void write_item(LoraQueueItem *item)
{
    int64 inference = 0;
    Oid user;
    int context;

    if (!lora_queue_lock_row(item))
        return;
    if (item->end == LORA_END_DONE) {
        GetUserIdAndSecContext(&user, &context);
        SetUserIdAndSecContext(item->role, SECURITY_LOCAL_USERID_CHANGE);
        inference = lora_attribute(&item->spec, lora_request_result(item->request));
        SetUserIdAndSecContext(user, context);
    }
    lora_queue_write_end(item, inference);
}

static void finish_item(LoraQueueItem *item)
{
    ol_error error;

    if (item->end == LORA_END_NONE) {
        if (lora_request_failed(item->request, &error))
            set_error(item, &error, true);
        else
            item->end = LORA_END_DONE;
    }
    item->held = item->gone = false;
    if (!try(write_item, item) && !try(write_item, item))
        elog(ERROR, "could not write the end of queued request " INT64_FORMAT, item->id);
    if (item->held) {
        again = true;
        return;
    }
    look = look || !item->refused;
    ConditionVariableBroadcast(lora_database_worker_progress(LORA_WORKER_QUEUE));
    drop_item(item);
}

/* -- steps of the loop ------------------------------------------------------------------- */

/* Takes what the engine has sent. Whether anything has ended. */
static bool take_frames(void)
{
    bool any = false;

    if (!n_items)
        return false;
    lora_begin_work();
    lora_requests_poll();
    for (LoraQueueItem *i = items; i; i = i->next)
        if (i->request && i->end == LORA_END_NONE)
            lora_request_revive(i->request);
    lora_commit_work();
    for (LoraQueueItem *i = items; i; i = i->next)
        any = any || (!i->held && (i->end != LORA_END_NONE || lora_request_ended(i->request)));
    return any;
}

static void finish_ended(bool held_too)
{
    LoraQueueItem *next;

    for (LoraQueueItem *i = items; i; i = next) {
        next = i->next;
        if ((held_too || !i->held) && (i->end != LORA_END_NONE || lora_request_ended(i->request)))
            finish_item(i);
    }
}

static void cancel_asked(void)
{
    int64 *ids;
    int n;

    if (!n_items)
        return;
    lora_begin_work();
    n = lora_queue_find_cancelled(&ids);
    lora_commit_work();
    for (int k = 0; k < n; k++)
        for (LoraQueueItem *i = items; i; i = i->next)
            if (i->id == ids[k])
                i->end = LORA_END_CANCELLED;
    if (n)
        pfree(ids);
}

/* Claims rows and begins them. One that has a last attempt left is begun alone. */
static void begin_waiting(void)
{
    LoraQueueItem *claimed, *next;
    int room = lora_queue_concurrency - n_items;

    look = false;
    if (room <= 0 || !lora_queue_workers || !lora_engine_is_ready() ||
        (n_items && items->last_attempt))
        return;
    lora_begin_work();
    claimed = lora_queue_claim(room, n_items == 0);
    lora_commit_work();
    for (LoraQueueItem *i = claimed; i; i = next) {
        next = i->next;
        i->next = items;
        items = i;
        n_items++;
        (void)try(start_item, i);
    }
}

static bool any_waits(void)
{
    bool waits;

    lora_begin_work();
    waits = lora_queue_any_waits();
    lora_commit_work();
    return waits;
}

/* Nothing is in flight. True when the worker shall end because it can do nothing now. */
static bool stands_still(bool *idle)
{
    *idle = !any_waits();
    if (*idle || (lora_queue_workers && lora_engine_is_ready()))
        return false;
    lora_database_worker_when_ready();
    return true;
}

/* -- the worker -------------------------------------------------------------------------- */

/* Should an earlier worker still be ending, its rows are not ours yet. The lock is of the
 * method of advisory locks, which outlive an aborted transaction and end with the process;
 * its last field is none that pg_advisory_lock uses. */
static void wait_for_predecessor(void)
{
    LOCKTAG tag;
    Oid queue;

    lora_begin_work();
    queue = lora_queue_relation();
    SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, queue, LORA_WORKER_QUEUE, LOCK_FIELD);
    (void)LockAcquire(&tag, ExclusiveLock, true, false);
    lora_commit_work();
}

static void prepare(void)
{
    SetConfigOption("search_path", "pg_catalog", PGC_SUSET, PGC_S_OVERRIDE);
    SetConfigOption("openlora.max_retries", "0", PGC_SUSET, PGC_S_OVERRIDE); /* rows are retried */
    SetConfigOption("openlora.engine_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
    SetConfigOption("default_transaction_isolation", "read committed", PGC_SUSET, PGC_S_OVERRIDE);
    SetConfigOption("default_transaction_read_only", "off", PGC_SUSET, PGC_S_OVERRIDE);
    lora_session_outlives = true;
    wait_for_predecessor();
    lora_begin_work();
    lora_queue_recover();
    lora_commit_work();
    ConditionVariableBroadcast(lora_database_worker_progress(LORA_WORKER_QUEUE));
}

static void expire(void)
{
    lora_begin_work();
    lora_queue_expire();
    lora_commit_work();
    expired_at = GetCurrentTimestamp();
}

/* Nobody need wake a worker for old rows: it comes again for them, but not for each. */
static void expire_later(void)
{
    TimestampTz next, soon;

    expire();
    lora_begin_work();
    next = lora_queue_expires_next();
    lora_commit_work();
    soon = TimestampTzPlusMilliseconds(
        expired_at, Min(EXPIRE_MS, Max(lora_queue_retention, 1) * INT64CONST(1000)));
    lora_database_worker_appoint(next && next < soon ? soon : next);
}

void lora_queue_worker(void)
{
    bool idle = false;

    MemoryContextSwitchTo(TopMemoryContext);
    prepare();
    expire();
    look = true;
    for (;;) {
        bool retry = again;

        again = false;
        lora_database_worker_well();
        if (lora_database_worker_asked()) {
            look = retry = true;
            cancel_asked();
        }
        finish_ended(retry);
        if (TimestampDifferenceExceeds(expired_at, GetCurrentTimestamp(), EXPIRE_MS))
            expire();
        if (look || retry)
            begin_waiting();
        while (take_frames()) /* last before the sleep: the steps above eat wake-ups */
            finish_ended(false);
        if (look)
            continue;
        idle = false;
        if (n_items == 0 && stands_still(&idle))
            return;
        if (n_items == 0 && !idle)
            again = true; /* somebody holds the rows that wait */
        if (idle)
            expire_later();
        if (!lora_database_worker_wait(idle, again ? RETRY_MS : -1))
            return;
    }
}
