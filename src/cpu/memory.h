/*
 * memory.h: the CPU device's memory, counted against its limit. Four lifetimes:
 * blocks (a KV pool, a buffer), weights (packed next to each other in regions of huge
 * pages, since all of them are read at every step), scratch (grows to the largest need
 * and stays), and what comes and goes all the time: adapters.
 *
 * Getting fresh pages from the system and clearing them takes as long as most of loading an
 * adapter into them. So a little of what adapters leave is kept for the next ones (CPU_SPARE bytes
 * at most; less, when the limit wants it), whatever their sizes: pages of several stretches are
 * moved side by side.
 *
 * Everything is aligned to 64 bytes, and readable for 64 bytes past its end, so that a vector
 * may start at any element; and everything but reused blocks is zeroed.
 */
#ifndef OL_CPU_MEMORY_H
#define OL_CPU_MEMORY_H

#include "base/status.h"

#include <pthread.h>

#define CPU_SPARE ((size_t)256 << 20)
#define CPU_SPARES 64 /* stretches of it at most */

typedef struct cpu_region cpu_region;

typedef struct cpu_spare {
    uint8_t *at;
    size_t bytes; /* whole huge pages */
} cpu_spare;

/* Blocks may be taken and given by several threads; regions and scratch are the steps'. */
typedef struct cpu_memory {
    pthread_mutex_t lock;         /* of all but regions */
    _Atomic size_t used;          /* written under the lock; without spares */
    size_t limit;                 /* 0: none */
    cpu_spare spares[CPU_SPARES]; /* oldest first */
    int n_spares;
    size_t spare; /* bytes of all of them; used + spare <= limit */
    cpu_region *regions;
} cpu_memory;

void cpu_memory_init(cpu_memory *memory, size_t limit);
void cpu_memory_end(cpu_memory *memory);

/* NULL and err when the limit or the system says no. */
void *cpu_block(cpu_memory *memory, size_t bytes, const char *what, ol_error *err);
void cpu_block_free(cpu_memory *memory, void *block, size_t bytes); /* NULL is fine */
/* The same for what comes and goes; its contents are anything. */
void *cpu_reused(cpu_memory *memory, size_t bytes, const char *what, ol_error *err);
void cpu_reused_free(cpu_memory *memory, void *block, size_t bytes); /* NULL is fine */

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
