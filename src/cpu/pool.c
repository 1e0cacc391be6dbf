/* pool.c: see pool.h. Workers spin for a few microseconds after a job, since the next
 * one usually follows at once within a step, then sleep on a futex. */
#include "cpu/pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_THREADS 256
#define SPINS 20000

struct cpu_pool {
    int threads;
    pthread_t ids[MAX_THREADS];
    cpu_job job;
    void *context;
    /* The job's number; workers run once per change. */
    _Alignas(64) _Atomic uint32_t ticket;
    _Atomic uint32_t sleepers;
    _Alignas(64) _Atomic uint32_t running; /* workers not yet finished */
    _Alignas(64) _Atomic uint32_t arrived; /* at the barrier */
    _Atomic uint32_t phase;
    _Atomic bool quit;
};

typedef struct worker_start {
    cpu_pool *pool;
    int number;
} worker_start;

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* Waits for a ticket other than `last`. */
static uint32_t next_ticket(cpu_pool *pool, uint32_t last)
{
    for (int i = 0; i < SPINS; i++) {
        uint32_t now = atomic_load_explicit(&pool->ticket, memory_order_acquire);

        if (now != last)
            return now;
        pause_briefly();
    }
    for (;;) {
        uint32_t now;

        atomic_fetch_add(&pool->sleepers, 1);
        now = atomic_load(&pool->ticket);
        if (now == last)
            futex_wait(&pool->ticket, last);
        atomic_fetch_sub(&pool->sleepers, 1);
        now = atomic_load_explicit(&pool->ticket, memory_order_acquire);
        if (now != last)
            return now;
    }
}

static void *worker_main(void *arg)
{
    worker_start start = *(worker_start *)arg;
    cpu_pool *pool = start.pool;
    uint32_t last = 0;

    free(arg);
    for (;;) {
        last = next_ticket(pool, last);
        if (atomic_load(&pool->quit))
            return NULL;
        pool->job(pool->context, start.number, pool->threads);
        atomic_fetch_sub_explicit(&pool->running, 1, memory_order_release);
    }
}

static int usable_processors(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
    return 1;
}

ol_code cpu_pool_create(int threads, cpu_pool **out, ol_error *err)
{
    cpu_pool *pool = aligned_alloc(64, (sizeof(*pool) + 63) & ~(size_t)63);

    if (!pool)
        return ol_fail_nomem(err, sizeof(*pool), "the thread pool");
    memset(pool, 0, sizeof(*pool));
    pool->threads = threads > 0 ? threads : usable_processors();
    if (pool->threads > MAX_THREADS)
        pool->threads = MAX_THREADS;
    for (int i = 1; i < pool->threads; i++) {
        worker_start *start = malloc(sizeof(*start));
        int failed = 1;

        if (start) {
            *start = (worker_start){pool, i};
            failed = pthread_create(&pool->ids[i], NULL, worker_main, start);
        }
        if (failed) {
            free(start);
            pool->threads = i;
            cpu_pool_destroy(pool);
            return ol_fail(err, OL_NOMEM, "could not start thread %d of %d", i + 1, threads);
        }
    }
    *out = pool;
    return OL_OK;
}

void cpu_pool_destroy(cpu_pool *pool)
{
    if (!pool)
        return;
    atomic_store(&pool->quit, true);
    atomic_fetch_add(&pool->ticket, 1);
    futex_wake_all(&pool->ticket);
    for (int i = 1; i < pool->threads; i++)
        pthread_join(pool->ids[i], NULL);
    free(pool);
}

int cpu_pool_threads(const cpu_pool *pool)
{
    return pool->threads;
}

void cpu_pool_run(cpu_pool *pool, cpu_job job, void *context)
{
    if (pool->threads == 1) {
        job(context, 0, 1);
        return;
    }
    pool->job = job;
    pool->context = context;
    atomic_store_explicit(&pool->running, (uint32_t)pool->threads - 1, memory_order_relaxed);
    atomic_fetch_add(&pool->ticket, 1); /* sequentially consistent: pairs with sleepers */
    if (atomic_load(&pool->sleepers))
        futex_wake_all(&pool->ticket);
    job(context, 0, pool->threads);
    for (int i = 0; atomic_load_explicit(&pool->running, memory_order_acquire); i++)
        if (i < SPINS)
            pause_briefly();
        else
            sched_yield();
}

void cpu_pool_barrier(cpu_pool *pool)
{
    uint32_t phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);

    if (pool->threads == 1)
        return;
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 ==
        (uint32_t)pool->threads) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool->phase, phase + 1, memory_order_release);
        return;
    }
    for (int i = 0; atomic_load_explicit(&pool->phase, memory_order_acquire) == phase; i++)
        if (i < SPINS)
            pause_briefly();
        else
            sched_yield();
}
