/*
 * ledger.h: from the worker, which hears of usage, to `openlora ledger`, the process of each
 * database that writes it into openlora.receipts.
 *
 * Receipts wait in shared memory, in a lane for each database that has any. The ledger
 * process (database_worker.h) is started when there is something to write, and ends when there
 * was nothing for a while. It takes receipts out of the lane after it has committed them.
 *
 * The worker never waits for it: a lane that is full, or a database without one, has its
 * receipts appended to pg_stat/openlora_receipts.<oid of the database>. So a database whose
 * ledger cannot write (its disk is full, no worker slot is free) holds up nobody, and
 * nothing is dropped. What is in shared memory when the server stops goes to these files,
 * too; in a crash it is lost. A power failure loses what came into files in the last second.
 *
 * One lock guards the lanes. Files are appended to and renamed under it, as it is what keeps
 * the two processes apart; no other lock is taken under it.
 */
#ifndef LORA_LEDGER_H
#define LORA_LEDGER_H

#include "lora_pg.h"

#include "nodes/pg_list.h"
#include "receipt.h"

#define LORA_LANES 16
#define LORA_ORIGIN_BYTES 256
#define LORA_LANE_RECEIPTS 256

extern Size lora_ledger_shared_size(void);
extern void lora_ledger_startup_shared(void);

/* -- in whatever process: mostly the openlora worker ------------------------------------- */
extern void lora_ledger_put(const LoraReceipt *receipt);

/* -- in the openlora worker ----------------------------------------------------------------- */
/* Looks after files. Returns after how many milliseconds to do so again, unless woken; -1:
 * never. */
extern long lora_ledger_tend(void);

/* -- in the launcher (database_worker_start.c) ----------------------------------------------- */
/* Databases of which something waits. */
extern List *lora_ledger_databases(void);
/* A database is no more: what waits for it does not any longer. */
extern void lora_ledger_drop(Oid database);

/* -- in a backend: announcing, for openlora.receipt_durability = sync ------------------------ */

typedef struct LoraAnnounced {
    int lane;
    uint64 number; /* 0: nothing was announced */
} LoraAnnounced;

/* Waits for room, if need be. */
extern bool lora_ledger_announce(const LoraReceipt *receipt, LoraAnnounced *announced,
                                 ol_error *error);
/* Until the announcement is on disk. */
extern void lora_ledger_await(const LoraAnnounced *announced);

/* -- in a backend: what only the ledger process does, as it alone reads the key ------------- */

typedef enum LoraAskKind {
    LORA_ASK_SIGN,   /* a checkpoint of all receipts that are there by now */
    LORA_ASK_CREATE, /* a key for an origin; refused when there is one */
    LORA_ASK_REPLACE /* the same, in place of one that is there */
} LoraAskKind;

/* Asks, and waits for the end. OL_OK, or what was wrong. */
extern ol_code lora_ledger_ask(LoraAskKind kind, const char *origin, ol_error *error);

/* -- in the ledger process ---------------------------------------------------------------- */
/* Whether somebody asks; the number that is answered with. */
extern bool lora_lane_asked(int lane, LoraAskKind *kind, char origin[LORA_ORIGIN_BYTES],
                            uint64 *number);
extern void lora_lane_answer(int lane, uint64 number, ol_code code, const ol_error *error);
/* What it does. */
extern void lora_ledger_worker(void);
/* The lane of this process's database, until the process ends; -1: it has none. */
extern int lora_lane_enter(void);
/* Whether receipts wait; and whether somebody waits for them, which is forgotten by it. */
extern bool lora_lane_waits(int lane, bool *urgent);
/* Up to LORA_LANE_RECEIPTS that wait, the oldest first. */
extern int lora_lane_copy(int lane, LoraReceipt *out);
/* The first n are written. */
extern void lora_lane_consume(int lane, int n);
/* The lane's file, now ours alone, to be removed when all of it is written; -1: none. `name`
 * has MAXPGPATH bytes. */
extern int lora_lane_file(int lane, char *name);
/* The next receipt of a file that is not damaged; false at its end. */
extern bool lora_lane_read(int file, LoraReceipt *receipt);

#endif
