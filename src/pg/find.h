/*
 * find.h: a row of a table of our own, found by a key, without an executor's plan. It is for
 * what every request reads; row-level security is the caller's business.
 */
#ifndef LORA_FIND_H
#define LORA_FIND_H

#include "lora_pg.h"

#include "access/attnum.h"
#include "utils/snapshot.h"

/* Where: a table of the schema openlora, a column, and the index that begins with it (without
 * it the whole table is read). */
typedef struct LoraFind {
    const char *table, *index;
    AttrNumber key;
    RegProcedure equal;
    int n_columns; /* that are wanted, the first ones */
} LoraFind;

/* The first row with that key which the snapshot sees, in the current memory context; out of
 * line values stay where they are. False: there is none. */
extern bool lora_find(const LoraFind *how, Datum key, Snapshot snapshot, Datum *values,
                      bool *nulls);
/* What is committed by now, whatever the isolation level, and what this transaction wrote. */
extern bool lora_find_latest(const LoraFind *how, Datum key, Datum *values, bool *nulls);

#endif
