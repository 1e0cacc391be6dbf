/*
 * database_worker_table.h: what is known of workers of one database; for database_worker*.c.
 *
 * An entry goes FREE -> WANTED (somebody has asked for it) -> STARTING (registered with the
 * postmaster) -> RUNNING -> FREE, or, when it failed, WANTED again after a pause. LATER is FREE
 * but for an appointment: at not_before it is WANTED, should nobody ask for it sooner.
 */
#ifndef LORA_DATABASE_WORKER_TABLE_H
#define LORA_DATABASE_WORKER_TABLE_H

#include "database_worker.h"

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

#define LORA_MAX_WORKER_ENTRIES 2048

typedef struct LoraWorkerTraits {
    const char *name;     /* of its processes */
    int *limit;           /* databases at the same time; 0: off */
    bool needs_engine;    /* not started while there is none that is ready */
    bool needs_extension; /* has nothing to do in a database without it */
    bool everywhere;      /* asked for in every database when the server has started */
    bool stubborn;        /* tried again for ever: its work does not wait to be asked for again */
    void (*main)(void);
} LoraWorkerTraits;

extern const LoraWorkerTraits lora_worker_traits[LORA_WORKER_KINDS];

typedef enum LoraEntryState {
    LORA_ENTRY_FREE,
    LORA_ENTRY_LATER,
    LORA_ENTRY_WANTED,
    LORA_ENTRY_STARTING,
    LORA_ENTRY_RUNNING,
} LoraEntryState;

typedef struct LoraWorkerEntry {
    LoraEntryState state;
    LoraWorkerKind kind;
    Oid database;
    bool work;  /* asked for since it looked last */
    bool leave; /* others wait for its place: end when idle */
    int pid, procno;
    int failures;           /* in a row */
    TimestampTz not_before; /* WANTED: when it may be tried; LATER: when it is wanted */
} LoraWorkerEntry;

typedef struct LoraWorkers {
    LWLock *lock; /* as LoraShared's: for copying only, no other lock under it */
    ConditionVariable progress[LORA_WORKER_KINDS];
    int n_entries; /* how many were ever in use */
    LoraWorkerEntry entries[LORA_MAX_WORKER_ENTRIES];
} LoraWorkers;

extern LoraWorkers *lora_workers;

/* Under the lock: one that is not running has failed once more. */
extern void lora_worker_failed(LoraWorkerEntry *entry);
/* Appointments are now: what they were made by has changed. */
extern void lora_worker_appointments_now(void);
/* The databases of entries that nobody has started; freed with the context. */
extern List *lora_worker_wanted_databases(void);
/* The database is no more: nobody is to be started in it. */
extern void lora_worker_forget(Oid database);

#endif
