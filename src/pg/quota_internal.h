/*
 * quota_internal.h: counters in shared memory, as the files of quota.h share them.
 *
 *   quota.c        the counters, under their lock
 *   quota_claim.c  what requests of this backend have reserved
 *   quota_file.c   how counters outlive a restart: from a file, and to it
 */
#ifndef LORA_QUOTA_INTERNAL_H
#define LORA_QUOTA_INTERNAL_H

#include "quota.h"

#include "storage/lwlock.h"
#include "utils/hsearch.h"

#define LORA_MAX_COUNTERS 10000

typedef struct LoraQuotaCounter {
    LoraQuotaKey key;
    int64 tokens;   /* taken in this window */
    int64 reserved; /* by requests that run */
    int64 window;   /* number of the period since 2000, 0 where there is none */
    TimestampTz since;
    int concurrent;
} LoraQuotaCounter;

/* Beside the counters, under the same lock. */
typedef struct LoraQuotaControl {
    uint64 changes; /* of `tokens`, since the server started */
} LoraQuotaControl;

extern LoraQuotaControl *lora_quota_control; /* NULL: not preloaded */
extern HTAB *lora_quota_table;

/* Its own, second of the tranche. */
extern LWLock *lora_quota_lock(void);
/* Under the lock: NULL when there is none, or no room to make one. */
extern LoraQuotaCounter *lora_quota_counter(const LoraQuotaKey *key, bool make);
/* Begins a new window when its time has come. */
extern void lora_quota_turn_window(LoraQuotaCounter *c, int64 period_us);

/* Finds the counters in shared memory, or makes them: then true. */
extern bool lora_quota_attach(void);

#endif
