/*
 * lora_pg.h: what every file of the extension needs: PostgreSQL's basics, the settings,
 * and turning error values into ereport.
 */
#ifndef LORA_PG_H
#define LORA_PG_H

#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "base/status.h"

/* -- settings (guc.c) -------------------------------------------------------------- */
extern char *lora_model;
extern char *lora_device;
extern char *lora_isa;
extern char *lora_engine_path;
extern char *lora_ledger_key_directory;
extern int lora_threads;
extern int lora_kv_cache_size;           /* MB; 0: the engine's default */
extern int lora_adapter_cache_size;      /* MB; 0: the engine's default */
extern int lora_adapter_host_cache_size; /* MB; -1: the engine's default */
extern int lora_cache_size;              /* MB; 0: none, the two above are by themselves */
extern int lora_memory_limit;            /* MB; 0: none */
extern int lora_merge_memory;            /* MB; 0: no limit */
extern int lora_context_length;          /* tokens; 0: the model's */
extern int lora_max_sequences;
extern int lora_step_tokens;
extern int lora_max_queued;
extern int lora_max_adapter_size;    /* MB */
extern int lora_max_prompt_size;     /* kB */
extern int lora_restart_backoff_max; /* ms */
extern int lora_max_retries;
extern int lora_engine_timeout; /* ms; how long a call waits for an engine that loads */
extern int lora_default_max_tokens;
extern int lora_queue_workers;
extern int lora_queue_concurrency;
extern int lora_queue_max_attempts;
extern int lora_queue_retention;  /* s; -1: for ever */
extern int lora_worker_idle_time; /* ms */
extern double lora_tenant_weight;
extern int lora_priority;
extern int lora_step_time; /* ms */
extern bool lora_prefix_cache;
typedef enum LoraKeep { LORA_KEEP_NOTHING, LORA_KEEP_HASH, LORA_KEEP_FULL } LoraKeep;
extern int lora_keep_text; /* LoraKeep */
extern bool lora_attribution;
typedef enum LoraDurability { LORA_RECEIPTS_ASYNC, LORA_RECEIPTS_SYNC } LoraDurability;
extern int lora_receipt_durability; /* LoraDurability */
#define LORA_MAX_PIPELINE_DEPTH 4096
extern int lora_pipeline_depth; /* -1: by lora_max_sequences; 0: off */

extern void lora_define_settings(void);

/* -- errors (errors.c) --------------------------------------------------------------- */
/* SQLSTATE of an error value. */
extern int lora_sqlstate(ol_code code);
extern void lora_raise(const ol_error *error) __attribute__((noreturn));

/* Whether the library was preloaded, so that shared memory and worker exist. */
extern bool lora_preloaded;
/* Fills error and returns false when it was not. */
extern bool lora_check_preloaded(ol_error *error);

#endif
