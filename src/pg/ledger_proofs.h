/* ledger_proofs.h: what proofs.c and ledger_export.c share. */
#ifndef LORA_LEDGER_PROOFS_H
#define LORA_LEDGER_PROOFS_H

#include "lora_pg.h"

/* The newest checkpoint of the present origin: its size, or -1, and its note, in the context
 * of before SPI_connect. SPI is connected. */
extern int64 lora_newest_checkpoint(char **note);

#endif
