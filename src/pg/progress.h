/*
 * progress.h: how far long jobs of backends are: one entry per backend, in shared memory, for
 * the views openlora.stat_progress_trace and stat_progress_merge.
 */
#ifndef LORA_PROGRESS_H
#define LORA_PROGRESS_H

#include "lora_pg.h"

typedef enum LoraJobKind {
    LORA_JOB_NONE,
    LORA_JOB_TRACE, /* of a dataset */
    LORA_JOB_MERGE, /* of so many adapters */
} LoraJobKind;

typedef enum LoraTracePhase {
    LORA_TRACE_READING, /* documents */
    LORA_TRACE_SORTING, /* words; done stays 0 */
    LORA_TRACE_WRITING, /* chunks */
} LoraTracePhase;

typedef enum LoraMergePhase {
    LORA_MERGE_READING, /* adapters */
    LORA_MERGE_MERGING, /* modules */
    LORA_MERGE_WRITING, /* the new one; done stays 0 */
} LoraMergePhase;

/* For shmem.c. */
extern Size lora_progress_size(void);
extern void lora_progress_startup(void);

/* A job begins, for `role`. Until lora_progress_end it is seen; whoever begins one ends it
 * whatever happens: PG_ENSURE_ERROR_CLEANUP with lora_progress_end. `how`: of a merge, its
 * method. */
extern void lora_progress_begin(LoraJobKind kind, int64 subject, const char *how, Oid role);
/* A phase begins, the kind's. */
extern void lora_progress_phase(int phase, int64 total);
extern void lora_progress_done(int64 done);
extern void lora_progress_end(int code, Datum arg);

#endif
