/*
 * shared.h: the extension's shared memory: one slot per backend, the worker, and what
 * is known of the engine. Plain data; process numbers and DSM handles, no pointers.
 *
 * `lock` guards everything here. It is held for copying only: never across a wait, a
 * system call or an allocation, and no other lock is taken under it.
 */
#ifndef LORA_SHARED_H
#define LORA_SHARED_H

#include "lora_pg.h"

#include "datatype/timestamp.h"
#include "engine/engine.h"
#include "storage/condition_variable.h"
#include "storage/dsm.h"
#include "storage/lwlock.h"

typedef enum LoraEngineState {
    LORA_ENGINE_OFF, /* no model is set */
    LORA_ENGINE_LOADING,
    LORA_ENGINE_READY,
    LORA_ENGINE_BROKEN,     /* loading failed; tried again after a change of settings */
    LORA_ENGINE_RESTARTING, /* died; will be started again after a pause */
} LoraEngineState;

typedef enum LoraSlotState {
    LORA_SLOT_FREE,
    LORA_SLOT_OPENING, /* the backend made a segment, the worker has not attached */
    LORA_SLOT_OPEN,
} LoraSlotState;

typedef struct LoraSlot {
    LoraSlotState state;
    uint32 epoch; /* of this slot's sessions */
    dsm_handle segment;
    int pid;
} LoraSlot;

typedef struct LoraShared {
    LWLock *lock;
    ConditionVariable
        changed;    /* broadcast when the worker, the engine's state or its info is new */
    int worker_pid; /* 0: none */
    int worker_procno;
    int engine_pid;
    uint32 generation; /* of engine processes: which one is meant */
    LoraEngineState engine;
    uint64 progress_done, progress_total;
    TimestampTz engine_since; /* of this state */
    int64 restarts;
    ol_error engine_error; /* BROKEN; last reason in RESTARTING */
    ol_engine_info info;   /* as last reported */
    TimestampTz info_at;
    ol_engine_info reset_info; /* counters as of the last reset */
    uint32 reset_generation;   /* of which engine */
    TimestampTz reset_at;
    bool status_wanted; /* somebody waits for a fresh report */
    bool any_opening;   /* a slot may be OPENING */
    int n_slots;
    LoraSlot slots[FLEXIBLE_ARRAY_MEMBER];
} LoraShared;

extern LoraShared *lora_shared;

/* For shmem.c, which holds the lock that making shared memory needs. */
extern Size lora_shared_size(void);
extern void lora_shared_startup(void);
/* As many as there can be backends. */
extern int lora_shared_slots(void);
/* Number of this process's slot. */
extern int lora_my_slot(void);
extern bool lora_engine_is_ready(void);
/* Sets the worker's latch; false when there is no worker. */
extern bool lora_wake_worker(void);

/* Sleeps until something changed (at once at the first call of a loop: look, then sleep), or
 * `until` has come: false. The loop ends with ConditionVariableCancelSleep. */
extern bool lora_wait_change(TimestampTz until);

/* Has the engine report, and waits for that as long as is reasonable. (status.c) */
extern void lora_refresh_status(void);

/* Wait event: our own name where the version has them. */
extern uint32 lora_wait_event(void);

#endif
