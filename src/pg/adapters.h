/*
 * adapters.h: rows of openlora.adapters, as a call uses them.
 */
#ifndef LORA_ADAPTERS_H
#define LORA_ADAPTERS_H

#include "lora_pg.h"

#include "base/file.h"
#include "utils/array.h"

typedef struct LoraAdapterRef {
    int64 id;
    char *name;
    ol_digest digest;
    float8 weight;
} LoraAdapterRef;

/* Resolves ids under the caller's snapshot and privileges; weights are not read. NULL or
 * empty ids give 0. Returns the number, or -1 with an error: a NULL element, an id that
 * is unknown or may not be used, a duplicate, too many, weights that do not fit. */
extern int lora_adapters_resolve(ArrayType *ids, ArrayType *weights, LoraAdapterRef **refs,
                                 ol_error *error);

/* Reads an adapter's bytes by slices, as the resolving snapshot sees them. */
typedef struct LoraAdapterReader LoraAdapterReader;

/* NULL with an error when the row is not visible any more. */
extern LoraAdapterReader *lora_adapter_open(const LoraAdapterRef *ref, ol_error *error);
/* Over values at hand (the row of a trigger). config may be NULL. */
extern LoraAdapterReader *lora_adapter_over(struct varlena *weights, const char *config);
extern Size lora_adapter_length(const LoraAdapterReader *reader);
/* The next bytes, at most `size`; 0 at the end. */
extern Size lora_adapter_read(LoraAdapterReader *reader, char *out, Size size);
extern void lora_adapter_rewind(LoraAdapterReader *reader);
extern const char *lora_adapter_config(const LoraAdapterReader *reader, Size *length);
extern void lora_adapter_close(LoraAdapterReader *reader);

/* The digest by which caches and receipts name it: see engine.h's ol_adapter_digest. */
extern void lora_adapter_digest(LoraAdapterReader *reader, ol_digest *digest);

#endif
