/*
 * database_worker.h: background workers that work in one database, on demand.
 *
 * A worker has a kind and a database; there is at most one of each pair. Whoever makes work
 * for it says so (lora_database_worker_ensure), which costs one lock and a latch. The openlora
 * worker, which is always there, starts what is wanted. A worker ends when it has been idle
 * for a while, and asking for it races with that under the lock, so that no work is
 * forgotten.
 *
 * A worker ends soon after its last work because it keeps DROP DATABASE, and CREATE DATABASE
 * with its database as the template, waiting: PostgreSQL gives them five seconds.
 */
#ifndef LORA_DATABASE_WORKER_H
#define LORA_DATABASE_WORKER_H

#include "lora_pg.h"

#include "datatype/timestamp.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"

typedef enum LoraWorkerKind {
    LORA_WORKER_QUEUE,  /* runs what lora_submit has queued: queue_worker.c */
    LORA_WORKER_LEDGER, /* writes receipts, and signs: ledger_worker.c */
    LORA_WORKER_KINDS
} LoraWorkerKind;

/* There is (or may be) work: wakes the worker, or has it started. Never fails, and may be
 * called at commit. */
extern void lora_database_worker_ensure(LoraWorkerKind kind, Oid database);

/* What others may wait for: a worker of the kind tells of progress, in any database. */
extern ConditionVariable *lora_database_worker_progress(LoraWorkerKind kind);

/* -- inside a worker: its main calls these ------------------------------------------------ */

/* Sleeps until somebody asked for work, the latch was set otherwise, or timeout_ms (-1: none)
 * went by. With `idle`, nothing being under way, it returns false when it is time to end:
 * then the worker is not known any more, and has to return at once. Interrupts and reloads
 * are handled. At the first call it is not known whether there is work: look before. */
extern bool lora_database_worker_wait(bool idle, long timeout_ms);
/* Whether work was asked for since the last call. */
extern bool lora_database_worker_asked(void);
/* Something was done: failures of before do not count. */
extern void lora_database_worker_well(void);
/* When it ends for having nothing to do: there will be something at `when` (0: not known). */
extern void lora_database_worker_appoint(TimestampTz when);
/* There is work, but not now: have it started again when the engine is ready. */
extern void lora_database_worker_when_ready(void);

/* -- in the openlora worker ------------------------------------------------------------------ */

/* Once, when it has started: asks for the workers of all databases after recovery. */
extern void lora_database_workers_begin(void);
/* Starts what is wanted. Milliseconds until it wants to be called again, or -1. */
extern long lora_database_workers_tend(void);

extern Size lora_database_workers_size(void);
extern void lora_database_workers_startup(LWLock *lock);

extern PGDLLEXPORT void lora_database_worker_main(Datum arg);
extern PGDLLEXPORT void lora_database_launcher_main(Datum arg);

#endif
