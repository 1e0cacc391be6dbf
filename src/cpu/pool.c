/*
 * pool.c: see pool.h.
 *
 * Waiting. Within a step the next job or barrier is microseconds away, so threads spin
 * first. They spin for SPINS pauses (some tens of microseconds) and then sleep on a
 * futex: an idle engine burns nothing, and a thread whose peer has lost its processor
 * gives up its own, which the peer may need.
 *
 * Processors that are left to others. A thread that has to share its processor with a stranger
 * holds up everybody at the next barrier, for as long as the scheduler's slices are: what a
 * stranger takes would count as often as there are threads. So a job has fewer threads while
 * somebody else computes, and each thread has a ticket of its own, for jobs without it leave it
 * asleep.
 *
 * Every wait is for one word to leave a value. A waiter announces itself in
 * `sleepers` before it sleeps, and the futex rechecks the word, so a waker that
 * changes the word first and reads `sleepers` second misses nobody; both are
 * sequentially consistent.
 */
#include "cpu/pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_THREADS 256
#define SPINS 1000

/* A word on a cache line of its own, with those who sleep on it. */
typedef struct event {
    _Alignas(64) _Atomic uint32_t word;
    _Atomic uint32_t sleepers;
} event;

/* A thread's share of a queue. */
typedef struct share {
    _Alignas(64) _Atomic int64_t next;
    int64_t end;
} share;

struct cpu_pool {
    int threads, processors;
    _Atomic int left; /* processors */
    pthread_t ids[MAX_THREADS];
    cpu_job job;
    void *context;
    int width;                             /* threads of the job, the caller's included */
    event tickets[MAX_THREADS];            /* a worker runs once per change of its own */
    event running;                         /* workers not yet finished */
    event phase;                           /* barriers passed */
    _Alignas(64) _Atomic uint32_t arrived; /* at the barrier */
    _Atomic bool quit;
    share *shares; /* [CPU_QUEUES][threads] */
};

typedef struct worker_start {
    cpu_pool *pool;
    int number;
} worker_start;

/* -- waiting ------------------------------------------------------------------------ */

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

/* Waits for the word to be other than `last`; returns what it became. */
static uint32_t await_change(event *e, uint32_t last)
{
    for (;;) {
        for (int i = 0; i < SPINS; i++) {
            uint32_t now = atomic_load_explicit(&e->word, memory_order_acquire);

            if (now != last)
                return now;
            pause_briefly();
        }
        atomic_fetch_add(&e->sleepers, 1);
        if (atomic_load(&e->word) == last)
            syscall(SYS_futex, &e->word, FUTEX_WAIT_PRIVATE, last, NULL, NULL, 0);
        atomic_fetch_sub(&e->sleepers, 1);
    }
}

static void wake(event *e)
{
    if (atomic_load(&e->sleepers))
        syscall(SYS_futex, &e->word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* -- workers -------------------------------------------------------------------------- */

static void *worker_main(void *arg)
{
    worker_start start = *(worker_start *)arg;
    cpu_pool *pool = start.pool;
    uint32_t last = 0;

    free(arg);
    for (;;) {
        last = await_change(&pool->tickets[start.number], last);
        if (atomic_load(&pool->quit))
            return NULL;
        pool->job(pool->context, start.number, pool->width);
        if (atomic_fetch_sub(&pool->running.word, 1) == 1)
            wake(&pool->running);
    }
}

static int usable_processors(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
    return 1;
}

static bool start_worker(cpu_pool *pool, int number)
{
    worker_start *start = malloc(sizeof(*start));

    if (!start)
        return false;
    *start = (worker_start){pool, number};
    if (pthread_create(&pool->ids[number], NULL, worker_main, start) != 0) {
        free(start);
        return false;
    }
    pthread_setname_np(pool->ids[number], "openlora-cpu");
    return true;
}

/* Signals are the engine's thread's business. */
static bool start_workers(cpu_pool *pool, int *started)
{
    sigset_t all, before;
    bool good = true;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (*started = 1; *started < pool->threads && good; *started += good)
        good = start_worker(pool, *started);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return good;
}

/* To the workers before the `end`th. */
static void give_tickets(cpu_pool *pool, int end)
{
    for (int i = 1; i < end; i++)
        atomic_fetch_add_explicit(&pool->tickets[i].word, 1, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    for (int i = 1; i < end; i++)
        wake(&pool->tickets[i]);
}

static void stop_workers(cpu_pool *pool, int started)
{
    atomic_store(&pool->quit, true);
    give_tickets(pool, started);
    for (int i = 1; i < started; i++)
        pthread_join(pool->ids[i], NULL);
    free(pool->shares);
    free(pool);
}

ol_code cpu_pool_create(int threads, cpu_pool **out, ol_error *err)
{
    cpu_pool *pool = aligned_alloc(64, (sizeof(*pool) + 63) & ~(size_t)63);
    size_t bytes;
    int started = 1;

    if (!pool)
        return ol_fail_nomem(err, sizeof(*pool), "the thread pool");
    memset(pool, 0, sizeof(*pool));
    pool->processors = usable_processors();
    pool->threads = threads > 0 ? threads : pool->processors;
    if (pool->threads > MAX_THREADS)
        pool->threads = MAX_THREADS;
    bytes = (size_t)CPU_QUEUES * (size_t)pool->threads * sizeof(share);
    pool->shares = aligned_alloc(64, bytes);
    if (!pool->shares) {
        stop_workers(pool, started);
        return ol_fail_nomem(err, bytes, "the thread pool");
    }
    memset(pool->shares, 0, bytes);
    if (!start_workers(pool, &started)) {
        threads = pool->threads;
        stop_workers(pool, started);
        return ol_fail(err, OL_NOMEM, "could not start thread %d of %d", started + 1, threads);
    }
    *out = pool;
    return OL_OK;
}

void cpu_pool_destroy(cpu_pool *pool)
{
    if (pool)
        stop_workers(pool, pool->threads);
}

int cpu_pool_threads(const cpu_pool *pool)
{
    return pool->threads;
}

void cpu_pool_leave(cpu_pool *pool, int processors)
{
    atomic_fetch_add(&pool->left, processors);
}

/* -- jobs -------------------------------------------------------------------------------- */

static int width_now(const cpu_pool *pool)
{
    int left = atomic_load_explicit(&pool->left, memory_order_relaxed);
    int width = left > 0 ? pool->processors - left : pool->threads;

    return width < 1 ? 1 : width < pool->threads ? width : pool->threads;
}

void cpu_pool_run(cpu_pool *pool, cpu_job job, void *context)
{
    uint32_t running;

    pool->width = width_now(pool);
    if (pool->width == 1) {
        job(context, 0, 1);
        return;
    }
    pool->job = job;
    pool->context = context;
    running = (uint32_t)pool->width - 1;
    atomic_store(&pool->running.word, running);
    give_tickets(pool, pool->width);
    job(context, 0, pool->width);
    while ((running = atomic_load(&pool->running.word)) != 0)
        await_change(&pool->running, running);
}

void cpu_pool_barrier(cpu_pool *pool)
{
    uint32_t phase;

    if (pool->width == 1)
        return;
    phase = atomic_load(&pool->phase.word);
    if (atomic_fetch_add(&pool->arrived, 1) + 1 < (uint32_t)pool->width) {
        await_change(&pool->phase, phase);
        return;
    }
    atomic_store(&pool->arrived, 0);
    atomic_fetch_add(&pool->phase.word, 1);
    wake(&pool->phase);
}

/* They find their tickets unchanged, and spin for them again. */
void cpu_pool_wake(cpu_pool *pool)
{
    for (int i = 1; i < width_now(pool); i++)
        wake(&pool->tickets[i]);
}

/* -- queues -------------------------------------------------------------------------------- */

void cpu_queue_fill(cpu_pool *pool, int queue, int64_t n)
{
    share *shares = pool->shares + queue * pool->threads;

    for (int i = 0; i < pool->threads; i++) {
        atomic_store_explicit(&shares[i].next, n * i / pool->threads, memory_order_relaxed);
        shares[i].end = n * (i + 1) / pool->threads;
    }
}

static int64_t take_from(share *s)
{
    int64_t unit;

    if (atomic_load_explicit(&s->next, memory_order_relaxed) >= s->end)
        return -1;
    unit = atomic_fetch_add_explicit(&s->next, 1, memory_order_relaxed);
    return unit < s->end ? unit : -1;
}

int64_t cpu_queue_take(cpu_pool *pool, int queue, int thread)
{
    share *shares = pool->shares + queue * pool->threads;

    for (int i = 0; i < pool->threads; i++) {
        int64_t unit = take_from(&shares[(thread + i) % pool->threads]);

        if (unit >= 0)
            return unit;
    }
    return -1;
}
