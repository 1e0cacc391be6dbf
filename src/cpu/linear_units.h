/* linear_units.h: units of work of linear modules: linear_prepare.c makes them, linear.c takes
 * them. */
#ifndef OL_CPU_LINEAR_UNITS_H
#define OL_CPU_LINEAR_UNITS_H

#include "cpu/core.h"

enum { QUANTIZE_QUEUE, SHRINK_QUEUE, CHUNK_QUEUE, ENERGY_QUEUE, QUEUES_PER_SLOT };

_Static_assert(2 * QUEUES_PER_SLOT <= CPU_QUEUES, "queues for both halves of an MLP");

#define SHRINK_ROWS 24 /* rows and panels of one unit of phase 1 */
#define SHRINK_PANELS 3
#define MAX_GRAIN 4 /* panels of a chunk */
#define FEW_ROWS 32

static inline int cpu_linear_queue(const cpu_linear *job, int queue)
{
    return job->slot * QUEUES_PER_SLOT + queue;
}

/* The next unit for this thread; below 0: there are no more. */
static inline int64_t cpu_linear_take(const cpu_linear *job, int queue, int thread)
{
    return cpu_queue_take(job->device->pool, cpu_linear_queue(job, queue), thread);
}

/* Units of phase 2 that a module makes. */
static inline int64_t cpu_linear_chunks(const cpu_linear *job, int part)
{
    return (cpu_panels(&job->parts[part].weight->m) + job->grain - 1) / job->grain;
}

#endif
