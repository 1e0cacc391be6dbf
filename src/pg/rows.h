/* rows.h: values of rows, and functions that return all of their rows at once. */
#ifndef LORA_ROWS_H
#define LORA_ROWS_H

#include "lora_pg.h"

#include "base/file.h"
#include "funcapi.h"

/* Prepares fcinfo->resultinfo's setResult and setDesc; the function returns (Datum)0 after
 * tuplestore_putvalues. The declared row type must be known (OUT parameters). */
extern ReturnSetInfo *lora_begin_rows(FunctionCallInfo fcinfo);

extern Datum lora_digest_datum(const ol_digest *digest); /* a bytea */

#endif
