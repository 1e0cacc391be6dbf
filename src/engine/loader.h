/*
 * loader.h: one thread beside the engine's, for work that would hold up its steps: reading,
 * checking and placing adapters, merging them. Jobs run one after the other, in the order
 * in which they were given, and come back in that order.
 *
 * A job's run is called on that thread and shares nothing with the engine but what is
 * fixed after opening, and the device's lora_create and lora_free (see device.h). It
 * must not log. Everything else happens where the job is taken back.
 */
#ifndef OL_ENGINE_LOADER_H
#define OL_ENGINE_LOADER_H

#include "base/status.h"

typedef struct ol_loader ol_loader;

/* The owner's job begins with one. */
typedef struct ol_job {
    void (*run)(struct ol_job *job);
    struct ol_job *next; /* the loader's */
} ol_job;

/* The thread starts with the first job. */
ol_code ol_loader_create(ol_loader **loader, ol_error *err);
/* Waits for the job that runs; `drop` gets it and all others that were not taken back. */
void ol_loader_free(ol_loader *loader, void (*drop)(ol_job *job, void *context), void *context);

/* OL_DEVICE when the thread cannot be started: the job was not taken. */
ol_code ol_loader_submit(ol_loader *loader, ol_job *job, ol_error *err);
/* The next job that is done, or NULL. */
ol_job *ol_loader_next(ol_loader *loader);
/* Readable while ol_loader_next would give one. */
int ol_loader_fd(const ol_loader *loader);
/* Jobs that were submitted and not taken back. */
int ol_loader_jobs(const ol_loader *loader);

#endif
