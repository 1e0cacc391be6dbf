/*
 * receipt.h: what is metered of a request.
 *
 * The backend writes a LoraMeter into each request. The engine does not look into it; when
 * the request ends, in whatever way, it sends it back to the worker together with what was
 * used. So whether the caller commits, rolls back, cancels or goes away has no say in it.
 *
 * Both structures are plain data and travel as they are, from one process of this server to
 * another. The engine is trusted less than they are: what comes back is checked.
 */
#ifndef LORA_RECEIPT_H
#define LORA_RECEIPT_H

#include "lora_pg.h"

#include "datatype/timestamp.h"
#include "engine/engine.h"
#include "port/pg_crc32c.h"
#include "request.h"

#define LORA_METER_MAGIC 0x4f4c4d32u /* "OLM2": changes with the layout */

typedef struct LoraMeter {
    uint32 magic;
    Oid database, role;
    int32 attempt; /* executions of this inference before: engines that were lost */
    int64 inference;
    NameData role_name;
    ol_digest prompt; /* SHA-256 over salt, prompt and, when scoring, completion */
    int32 task;       /* ol_task */
    float4 temperature, top_p, min_p;
    float4 repetition_penalty, presence_penalty, frequency_penalty;
    int32 top_k, max_tokens, ignore_eos;
    int32 n_adapters;
    uint64 seed;
    int64 adapter_ids[OL_MAX_REQUEST_ADAPTERS];
    float8 weights[OL_MAX_REQUEST_ADAPTERS];
    ol_digest adapters[OL_MAX_REQUEST_ADAPTERS];
} LoraMeter;

#define LORA_DEVICE_NAME 128

typedef struct LoraReceipt {
    LoraMeter meter;
    TimestampTz at;  /* when the worker heard of it */
    int32 outcome;   /* ol_outcome */
    int32 announced; /* it is no receipt yet, but a request that will be made: meter and at */
    int32 input_tokens, cached_tokens, output_tokens;
    ol_digest output; /* see OL_EVENT_USAGE */
    ol_digest base_model;
    int32 shares[OL_MAX_REQUEST_ADAPTERS]; /* measured, parts per million */
    char device[LORA_DEVICE_NAME];
    pg_crc32c crc; /* in a file: of all before */
} LoraReceipt;

/* A new inference's id: of the identity of openlora.inferences, before it is asked for. */
extern int64 lora_next_inference(void);
/* A new salt, from the system's random numbers. */
extern void lora_make_salt(ol_digest *salt);
/* The caller is the present user. */
extern void lora_meter_fill(LoraMeter *meter, const LoraSpec *spec, const LoraResult *result,
                            int attempt);
/* Whether it can be a receipt at all, wherever it came from. */
extern bool lora_receipt_is_sound(const LoraReceipt *receipt);
/* What the engine reports. False: it is no usage of a request of ours. */
extern bool lora_receipt_take(ol_reader *r, const ol_engine_info *engine, LoraReceipt *receipt);

#endif
