/* ledger_rows.h: receipts into openlora.receipts. SPI is connected. */
#ifndef LORA_LEDGER_ROWS_H
#define LORA_LEDGER_ROWS_H

#include "lora_pg.h"

#include "receipt.h"

/* Its row, and its place in the tree. */
extern void lora_receipt_write(LoraReceipt *receipt, int64 leaf);
/* Of a file that an earlier process may have begun. The digest is salted: no two requests
 * have the same. */
extern bool lora_receipt_is_written(const LoraReceipt *receipt);

#endif
