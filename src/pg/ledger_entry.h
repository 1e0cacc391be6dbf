/*
 * ledger_entry.h: receipts as entries of the ledger's tree: as they come, and as they lie in
 * openlora.receipts. SPI is connected.
 */
#ifndef LORA_LEDGER_ENTRY_H
#define LORA_LEDGER_ENTRY_H

#include "lora_pg.h"

#include "ledger/entry.h"
#include "receipt.h"

/* What a receipt's columns are, in the order that lora_entry_from_row expects. */
#define LORA_ENTRY_COLUMNS                                                                         \
    "leaf, at, database::pg_catalog.int8, role::pg_catalog.text, inference, attempt, outcome,"     \
    " task, base_model, device, input_tokens, cached_tokens, output_tokens, temperature, top_k,"   \
    " top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, max_tokens,"          \
    " ignore_eos, seed, adapters, weights, shares, prompt_digest, output_digest, role_salt,"       \
    " adapter_ids"
#define LORA_ENTRY_N_COLUMNS 30

#define LORA_OUTCOMES (LORA_OUTCOME_ANNOUNCED + 1)
/* As they are called in the table. */
extern const char *const lora_outcomes[LORA_OUTCOMES];
/* The engine's device in plain ASCII, as it is stored. */
extern void lora_plain_device(const LoraReceipt *receipt, char plain[LORA_DEVICE_NAME]);
/* Appends the entry of a receipt that becomes `leaf`. */
extern void lora_entry_from_receipt(const LoraReceipt *receipt, uint64 leaf, ol_buf *out);
/* Appends the entry of a row of the last SPI result. False: nothing is appended, as the
 * ledger process cannot have written such a row. */
extern bool lora_entry_from_row(uint64 row, ol_buf *out);
/* The same; such a row is an error. */
extern void lora_must_be_entry(uint64 row, ol_buf *out);

#endif
