/*
 * pool.h: the CPU device's threads. One caller, the engine's thread, which works as
 * thread 0 itself. Work is cut statically: what a thread computes never depends on
 * timing, and no result depends on the number of threads (see README.md).
 */
#ifndef OL_CPU_POOL_H
#define OL_CPU_POOL_H

#include "base/status.h"

typedef struct cpu_pool cpu_pool;

/* Called on every thread with its number and the number of threads. */
typedef void (*cpu_job)(void *context, int thread, int threads);

/* threads 0: one per processor that the process may run on. */
ol_code cpu_pool_create(int threads, cpu_pool **pool, ol_error *err);
void cpu_pool_destroy(cpu_pool *pool);
int cpu_pool_threads(const cpu_pool *pool);
/* Returns when all threads have finished the job. */
void cpu_pool_run(cpu_pool *pool, cpu_job job, void *context);
/* Within a job: waits until all threads of the job are here. */
void cpu_pool_barrier(cpu_pool *pool);

/* The part of n items that falls to a thread, in whole grains. */
static inline void cpu_share(int64_t n, int64_t grain, int thread, int threads, int64_t *from,
                             int64_t *to)
{
    int64_t grains = (n + grain - 1) / grain;

    *from = grains * thread / threads * grain;
    *to = grains * (thread + 1) / threads * grain;
    if (*to > n)
        *to = n;
    if (*from > n)
        *from = n;
}

#endif
