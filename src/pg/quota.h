/*
 * quota.h: what roles have used of what they may use.
 *
 * Counters live in shared memory, so that a rollback takes nothing back and nobody waits
 * for another's row; the worker writes them to a file every few seconds while they
 * change, the postmaster when it stops, and they are read from there at the next start. A
 * crash loses those seconds. The limits are rows (sql/80-access.sql), read at each call.
 *
 * A request reserves what it may generate before it is sent, and is charged what it took
 * when it ends, however it ends.
 */
#ifndef LORA_QUOTA_H
#define LORA_QUOTA_H

#include "lora_pg.h"

#include "datatype/timestamp.h"

/* What is counted: a role's own use (adapter 0), or a grantee's use of one adapter. */
typedef struct LoraQuotaKey {
    Oid database, role;
    int64 adapter;
} LoraQuotaKey;

/* One counter that a request is held to. */
typedef struct LoraQuota {
    LoraQuotaKey key;
    int64 tokens;     /* -1: no limit */
    int64 period_us;  /* 0: for ever */
    int concurrent;   /* sessions that ask at the same time; -1: no limit */
    const char *what; /* for messages, UTF-8: whose quota it is */
} LoraQuota;

#define LORA_MAX_QUOTAS 17 /* a role's, and one per adapter of a request */

/* A request's claim on its counters; 0 is none. */
typedef uint64 LoraQuotaClaim;

/* Reserves `tokens` on each counter and counts the session as asking. False, and nothing
 * reserved, with an error when one of them is used up. */
extern bool lora_quota_claim(const LoraQuota *quotas, int n, int64 tokens, LoraQuotaClaim *claim,
                             ol_error *error);
/* Charges what was taken so far; what was reserved beyond stays reserved. */
extern void lora_quota_took(LoraQuotaClaim claim, int64 tokens);
/* The request is over: gives back what it did not take. A claim that ended is no error. */
extern void lora_quota_end(LoraQuotaClaim claim);

/* For those who look: a copy, palloc'ed; returns how many. */
typedef struct LoraQuotaState {
    LoraQuotaKey key;
    int64 tokens, reserved;
    int concurrent;
    TimestampTz since;
} LoraQuotaState;

extern int lora_quota_list(Oid database, LoraQuotaState **list);
/* Begins at zero again. */
extern void lora_quota_forget(const LoraQuotaKey *key);

/* In the shared memory hooks and in the worker. */
extern Size lora_quota_shared_size(void);
extern void lora_quota_startup_shared(void);
/* Writes the file if counters have changed; milliseconds until it wants to be called
 * again, or -1. */
extern long lora_quota_write_if_due(void);

#endif
