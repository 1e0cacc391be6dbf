/*
 * append.h: rows of tables of our own, written without an executor's plan.
 */
#ifndef LORA_APPEND_H
#define LORA_APPEND_H

#include "lora_pg.h"

#include "spi.h"

/* The table openlora.inferences, or one whose rows belong to an inference that this
 * transaction has just written: its foreign key needs no check, and so many CHECK
 * constraints hold by the way the rows are made, as NOT NULL does. */
typedef struct LoraAppend {
    const char *table;
    int n_columns, n_checks;
} LoraAppend;

/* Appends n rows, all columns of each. False, with nothing done, when somebody has given
 * the table more to do than that (triggers, rules, columns, constraints): INSERT does it. */
extern bool lora_append(const LoraAppend *how, int n, const Datum *values, const bool *nulls);
/* Appends them, or has the statement insert each. SPI must be connected. */
extern void lora_insert_rows(const LoraAppend *how, LoraStatement *insert, int n, Datum *values,
                             const bool *nulls);

#endif
