/*
 * receipt.h: what is metered of a request.
 *
 * The backend writes a LoraMeter into each request. The openlora worker keeps it (metering.h),
 * and the engine, which does not look into it, tells what was used, now and then and when the
 * request ends. So whether the caller commits, rolls back, cancels or goes away has no say in
 * it, nor whose it is the engine.
 *
 * Both structures are plain data and travel as they are, from one process of this server to
 * another. The engine is trusted less than they are: what it says is checked.
 */
#ifndef LORA_RECEIPT_H
#define LORA_RECEIPT_H

#include "lora_pg.h"

#include "datatype/timestamp.h"
#include "engine/engine.h"
#include "port/pg_crc32c.h"
#include "request.h"

#define LORA_METER_MAGIC 0x4f4c4d33u /* "OLM3": changes with the layout */

typedef struct LoraMeter {
    uint32 magic;
    Oid database, role;
    int32 attempt; /* executions of this inference before: engines that were lost */
    int64 inference;
    NameData role_name;
    ol_digest prompt;  /* SHA-256 over salt, prompt and, when scoring, completion */
    ol_digest nothing; /* over the salt alone: an output without tokens */
    int32 announced;   /* it was: a receipt is due even if nothing is computed */
    int32 task;        /* ol_task */
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

/* Beside ol_outcome: its engine was lost, so this is the last that was heard; and what is no
 * receipt yet, but a request that will be made. */
#define LORA_OUTCOME_LOST OL_OUTCOME_SO_FAR
#define LORA_OUTCOME_ANNOUNCED (OL_OUTCOME_SO_FAR + 1)

typedef struct LoraReceipt {
    LoraMeter meter;
    TimestampTz at; /* when the worker heard of it */
    int32 outcome;
    int32 input_tokens, cached_tokens, output_tokens;
    ol_digest role_salt; /* made when it is written */
    ol_digest output;    /* see OL_EVENT_USAGE */
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
extern bool lora_meter_is_sound(const LoraMeter *meter);
/* Whether it can be a receipt at all, wherever it came from. */
extern bool lora_receipt_is_sound(const LoraReceipt *receipt);
/* Of a request that the present engine has, or will have; nothing is used yet. */
extern void lora_receipt_begin(const LoraMeter *meter, int outcome, LoraReceipt *receipt);
/* What the engine reports of it. False: that cannot be. */
extern bool lora_receipt_report(LoraReceipt *receipt, ol_reader *r);

#endif
