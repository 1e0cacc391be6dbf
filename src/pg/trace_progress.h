/*
 * trace_progress.h: how far builds of trace indexes are: one entry per backend, in shared
 * memory, for the view openlora.stat_progress_trace.
 */
#ifndef LORA_TRACE_PROGRESS_H
#define LORA_TRACE_PROGRESS_H

#include "lora_pg.h"

typedef enum TracePhase {
    TRACE_IDLE,
    TRACE_READING, /* documents */
    TRACE_SORTING, /* words; done stays 0 */
    TRACE_WRITING, /* chunks */
} TracePhase;

/* For shmem.c. */
extern Size lora_trace_progress_size(void);
extern void lora_trace_progress_startup(void);

/* A build begins, for `role`. Until lora_trace_progress_end it is seen; whoever begins one
 * ends it whatever happens: PG_ENSURE_ERROR_CLEANUP with lora_trace_progress_end. */
extern void lora_trace_progress_begin(int64 dataset, Oid role);
extern void lora_trace_progress_phase(TracePhase phase, int64 total);
extern void lora_trace_progress_done(int64 done);
extern void lora_trace_progress_end(int code, Datum arg);

#endif
