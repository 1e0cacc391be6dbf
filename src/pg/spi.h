/* spi.h: statements prepared once per backend. SPI must be connected. */
#ifndef LORA_SPI_H
#define LORA_SPI_H

#include "lora_pg.h"

#include "executor/spi.h"

#define LORA_MAX_ARGS 24

typedef struct LoraStatement {
    const char *text;
    int n_args;
    Oid types[LORA_MAX_ARGS];
    SPIPlanPtr plan;
} LoraStatement;

/* Executes; read_only uses the caller's snapshot. Returns the number of rows. */
extern uint64 lora_execute(LoraStatement *statement, Datum *values, const char *nulls,
                           bool read_only);
/* Column `column` (from 1) of row `row` of the last result. */
extern Datum lora_value(uint64 row, int column, bool *is_null);
extern int64 lora_int64(uint64 row, int column);
/* A copy in the memory context of before SPI_connect; NULL for NULL. */
extern char *lora_text(uint64 row, int column);

/* The owner of the extension's tables. */
extern Oid lora_tables_owner(void);

#endif
