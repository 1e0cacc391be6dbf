/*
 * ledger_lane.h: lanes as they lie in shared memory (ledger_lane_table.c), and their files
 * (ledger_file.c); for those, ledger_lane.c and ledger_ask.c. See ledger.h.
 */
#ifndef LORA_LEDGER_LANE_H
#define LORA_LEDGER_LANE_H

#include "ledger.h"

#include "storage/condition_variable.h"
#include "storage/lwlock.h"

/* A lane stays its database's until another one needs it. */
typedef struct LoraLane {
    Oid database;     /* InvalidOid: it was never used */
    int pid;          /* of the process that writes it; 0: none */
    uint64 last_turn; /* of all lanes, when it was given away or left: the least goes first */
    bool filed;       /* there is a file, too */
    bool urgent;      /* somebody waits for what is in it, or it fills up */
    uint64 asked, answered;
    bool creating; /* an ask for a key waits: it has the place alone */
    LoraAskKind kind;
    char origin[LORA_ORIGIN_BYTES];
    ol_code code; /* of the last answer */
    ol_error error;
    uint64 written; /* of all that ever came into the ring */
    uint32 head, used;
    LoraReceipt ring[LORA_LANE_RECEIPTS];
} LoraLane;

typedef struct LoraLanes {
    LWLock *lock;
    ConditionVariable answered; /* any lane's */
    ConditionVariable written;
    uint64 turns;         /* changes when a lane becomes free */
    uint64 looked_at;     /* `turns` when files were looked for */
    bool files_wait;      /* there may be files of databases without a lane */
    TimestampTz since;    /* what was before is known from files and tables alone */
    TimestampTz unsynced; /* since when a file is not safe from a power failure; 0: all are */
    LoraLane lanes[LORA_LANES];
} LoraLanes;

extern LoraLanes *lora_lanes;

/* -- under the lock -------------------------------------------------------------------------- */

/* The database's lane, or one that nobody needs, which is then its own; NULL: none. */
extern LoraLane *lora_lane_of(Oid database);
extern bool lora_lane_has_work(const LoraLane *lane);
extern void lora_file_append(const LoraReceipt *receipt);

/* -- not under it ------------------------------------------------------------------------------ */

/* Whether a file of the database waits to be written into its ledger. */
extern bool lora_file_waits(Oid database);
/* All files are made safe, if that is due or `now`. Milliseconds until it is; -1: never. */
extern long lora_files_sync(bool now);
/* Gives lanes to databases that have a file, and has them written, as far as there are any. */
extern void lora_files_find(void);
/* Databases that have one. */
extern List *lora_files_databases(void);
extern void lora_files_remove(Oid database);

#endif
