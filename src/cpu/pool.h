/*
 * pool.h: the CPU device's threads. One caller, the engine's thread, which works as
 * thread 0 itself.
 *
 * Work is a queue of numbered units. Each thread begins with its own contiguous share
 * (the same at every step, so small weights stay in its cache) and then takes what
 * other threads have left: on a machine that is shared with others, a thread that
 * loses its processor for a while does not hold up the rest. Which thread computes a
 * unit has no influence on its result.
 */
#ifndef OL_CPU_POOL_H
#define OL_CPU_POOL_H

#include "base/status.h"

typedef struct cpu_pool cpu_pool;

/* Called on every thread of the job with its number and the number of threads. */
typedef void (*cpu_job)(void *context, int thread, int threads);

/* threads 0: one per processor that the process may run on. */
ol_code cpu_pool_create(int threads, cpu_pool **pool, ol_error *err);
void cpu_pool_destroy(cpu_pool *pool); /* NULL is fine */
int cpu_pool_threads(const cpu_pool *pool);

/* So many processors more (or less) than before are left to others, from the next job on: jobs
 * have as many threads as there are processors besides, one at least. On any thread. */
void cpu_pool_leave(cpu_pool *pool, int processors);

/* Calls the job on the threads; returns when all of them have finished. */
void cpu_pool_run(cpu_pool *pool, cpu_job job, void *context);
/* Within a job: waits until all threads of the job are here. */
void cpu_pool_barrier(cpu_pool *pool);
/* Wakes sleeping threads, since a job will follow soon. */
void cpu_pool_wake(cpu_pool *pool);

#define CPU_QUEUES 9

/* Fills a queue with units 0 .. n - 1: before the job that empties it. */
void cpu_queue_fill(cpu_pool *pool, int queue, int64_t n);
/* A unit for this thread, or -1 when none is left. */
int64_t cpu_queue_take(cpu_pool *pool, int queue, int thread);

#endif
