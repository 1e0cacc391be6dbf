/*
 * memory.h: the CPU device's memory, counted against its limit. Three lifetimes:
 * blocks (an adapter, a KV pool, a buffer), weights (packed next to each other in
 * regions of huge pages, since all of them are read at every step), and scratch
 * (grows to the largest need and stays).
 *
 * Everything is zeroed, aligned to 64 bytes, and readable for 64 bytes past its end,
 * so that a vector may start at any element.
 */
#ifndef OL_CPU_MEMORY_H
#define OL_CPU_MEMORY_H

#include "base/status.h"

typedef struct cpu_region cpu_region;

/* Blocks may be taken and given by several threads; regions and scratch are the steps'. */
typedef struct cpu_memory {
    _Atomic size_t used;
    size_t limit; /* 0: none */
    cpu_region *regions;
} cpu_memory;

/* NULL and err when the limit or the system says no. */
void *cpu_block(cpu_memory *memory, size_t bytes, const char *what, ol_error *err);
void cpu_block_free(cpu_memory *memory, void *block, size_t bytes); /* NULL is fine */

void *cpu_region_take(cpu_memory *memory, size_t bytes, const char *what, cpu_region **home,
                      ol_error *err);
void cpu_region_give(cpu_memory *memory, cpu_region *home, size_t bytes); /* NULL is fine */

typedef struct cpu_scratch {
    void *data;
    size_t bytes;
} cpu_scratch;

/* Contents are lost when it grows. */
ol_code cpu_scratch_need(cpu_memory *memory, cpu_scratch *scratch, size_t bytes, ol_error *err);
void cpu_scratch_free(cpu_memory *memory, cpu_scratch *scratch);

static inline size_t cpu_align(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

#endif
