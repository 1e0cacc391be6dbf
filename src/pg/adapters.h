/*
 * adapters.h: rows of openlora.adapters, as a call uses them.
 */
#ifndef LORA_ADAPTERS_H
#define LORA_ADAPTERS_H

#include "lora_pg.h"

#include "base/file.h"
#include "utils/array.h"

/* One row, as the resolving snapshot saw it. `weights` and `config` are what the row
 * held: pointers to TOAST mostly, which stay good while that snapshot does, that is, to
 * the end of the query that resolved. Nothing is read through them until the engine asks. */
typedef struct LoraAdapterRef {
    int64 id;
    char *name; /* in the database's encoding */
    ol_digest digest;
    float8 weight;
    struct varlena *weights;
    struct varlena *config; /* jsonb; NULL for GGUF */
    Oid quota_of;           /* the grantee by whose grant it is used, if that has a quota */
    int64 token_quota;
} LoraAdapterRef;

/* Resolves ids under the caller's snapshot and privileges; the right to use an adapter is
 * needed (access.h), not that to read its weights. NULL or empty ids give 0. Returns the number,
 * or -1 with an error: a NULL element, an id that is unknown or not visible, a duplicate,
 * too many, weights that do not fit. Raises when an answer could not be attributed anyway
 * (a read-only transaction, a standby). The refs are in the current memory context. */
extern int lora_adapters_resolve(ArrayType *ids, ArrayType *weights, LoraAdapterRef **refs,
                                 ol_error *error);

/* The query that resolved it is over: finds its bytes again. False with an error when the row
 * has other ones now, or is gone. */
extern bool lora_adapter_find_again(LoraAdapterRef *ref, ol_error *error);

/* -- reading (adapter_reader.c) ------------------------------------------------------ */

/* Reads weights by slices, never the whole value. */
typedef struct LoraAdapterReader LoraAdapterReader;

/* The most that an adapter may hold, in bytes. */
extern Size lora_adapter_size_limit(void);
/* Of the row version that was resolved. NULL with an error when it is beyond the limit. */
extern LoraAdapterReader *lora_adapter_open(const LoraAdapterRef *ref, ol_error *error);
/* Over values at hand (the row of a trigger). config, a jsonb, may be NULL. */
extern LoraAdapterReader *lora_adapter_over(struct varlena *weights, struct varlena *config);
extern Size lora_adapter_length(const LoraAdapterReader *reader);
/* What to store instead, when the value is one that slices would not be cheap of; else
 * NULL. */
extern struct varlena *lora_adapter_plain(LoraAdapterReader *reader);
/* The next bytes, at most `size`; 0 at the end. */
extern Size lora_adapter_read(LoraAdapterReader *reader, char *out, Size size);
extern void lora_adapter_rewind(LoraAdapterReader *reader);
/* config::text as UTF-8; empty for GGUF. */
extern const char *lora_adapter_config(const LoraAdapterReader *reader, Size *length);
extern void lora_adapter_close(LoraAdapterReader *reader);

/* The digest by which caches and receipts name it: see engine.h's ol_adapter_digest. */
extern void lora_adapter_digest(LoraAdapterReader *reader, ol_digest *digest);

/* The outer form (adapter_form.c): "peft" or "gguf", as far as it can be told without the
 * engine: sizes, the header of safetensors and where its tensors lie. Raises on anything
 * else, pickles by name. */
extern const char *lora_adapter_form(LoraAdapterReader *reader, bool has_config);

#endif
