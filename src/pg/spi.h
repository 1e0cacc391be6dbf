/*
 * spi.h: statements prepared once per backend, and the rights they run with. SPI must be
 * connected.
 *
 * Every name in a statement is qualified, operators and types too, so that the caller's
 * search path chooses nothing.
 */
#ifndef LORA_SPI_H
#define LORA_SPI_H

#include "lora_pg.h"

#include "executor/spi.h"

#define LORA_MAX_ARGS 32

typedef struct LoraStatement {
    const char *text;
    int n_args;
    Oid types[LORA_MAX_ARGS];
    SPIPlanPtr plan;
} LoraStatement;

/* Connects: until SPI_finish. */
extern void lora_connect(void);
/* In a worker: a transaction of its own, connected, from here to there. */
extern void lora_begin_work(void);
extern void lora_commit_work(void);

/* Executes. Returns the number of rows. read_only: under the caller's own snapshot, which
 * does not see what the running command did; else under a new one that does. */
extern uint64 lora_execute(LoraStatement *statement, Datum *values, const char *nulls,
                           bool read_only);
/* Reads what is committed by now, whatever the isolation level, and what this transaction
 * wrote. */
extern uint64 lora_read_latest(LoraStatement *statement, Datum *values);
/* Column `column` (from 1) of row `row` of the last result. */
extern Datum lora_value(uint64 row, int column, bool *is_null);
extern int64 lora_int64(uint64 row, int column);
/* Copies in the memory context of before SPI_connect; NULL for NULL. TOASTed values stay
 * pointers. */
extern char *lora_text(uint64 row, int column);
extern struct varlena *lora_varlena(uint64 row, int column);

/* The owner of the extension's tables. */
extern Oid lora_tables_owner(void);

/* Statements between the two run with that owner's rights. An error that ends the
 * (sub)transaction restores the caller's, too. */
typedef struct LoraIdentity {
    Oid user;
    int context;
} LoraIdentity;

extern void lora_become_owner(LoraIdentity *caller);
extern void lora_become_caller(const LoraIdentity *caller);

#endif
