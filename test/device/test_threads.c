/* test_threads.c: the CPU device's threads: every unit is taken once, nobody passes a barrier
 * early, and jobs do without the processors that are left to others. */
#include "cpu/pool.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

enum { UNITS = 300, THREADS = 4, JOBS = 3000, MANY = 1 << 16 };

typedef struct sums {
    cpu_pool *pool;
    _Atomic int present;           /* threads of the job */
    _Atomic int first[UNITS];      /* how often each was taken before the barrier */
    _Atomic int early;             /* units that were not yet done behind it */
    _Atomic int second;            /* units taken behind it */
    int threads;                   /* as thread 0 was told */
    _Atomic int disagreed, beyond; /* threads that were told otherwise, or should not be there */
} sums;

static void two_phases(void *context, int thread, int threads)
{
    sums *s = context;
    int64_t unit;

    atomic_fetch_add(&s->present, 1);
    if (thread == 0)
        s->threads = threads;
    atomic_fetch_add(&s->beyond, thread >= threads);
    while ((unit = cpu_queue_take(s->pool, 0, thread)) >= 0)
        atomic_fetch_add(&s->first[unit], 1);
    cpu_pool_barrier(s->pool);
    atomic_fetch_add(&s->disagreed, threads != s->threads);
    for (int i = 0; i < UNITS; i++)
        atomic_fetch_add(&s->early, atomic_load(&s->first[i]) != 1);
    while ((unit = cpu_queue_take(s->pool, 1, thread)) >= 0)
        atomic_fetch_add(&s->second, 1);
}

/* A job; how many threads it had. */
static int run_job(cpu_pool *pool)
{
    static sums s;

    s = (sums){.pool = pool};
    cpu_queue_fill(pool, 0, UNITS);
    cpu_queue_fill(pool, 1, UNITS);
    cpu_pool_run(pool, two_phases, &s);
    assert_int_equal(s.present, s.threads);
    assert_int_equal(s.disagreed + s.beyond + s.early, 0);
    assert_int_equal(s.second, UNITS);
    return s.threads;
}

static cpu_pool *open_pool(int threads)
{
    cpu_pool *pool;
    ol_error err;

    assert_int_equal(cpu_pool_create(threads, &pool, &err), OL_OK);
    return pool;
}

static void test_every_unit_once(void **state)
{
    (void)state;
    for (int threads = 1; threads <= THREADS; threads++) {
        cpu_pool *pool = open_pool(threads);

        assert_int_equal(cpu_pool_threads(pool), threads);
        for (int i = 0; i < 200; i++)
            assert_int_equal(run_job(pool), threads);
        cpu_pool_destroy(pool);
    }
}

/* Threads that a job went without are there for the next one. */
static void test_processors_are_left(void **state)
{
    cpu_pool *pool = open_pool(0);
    int all = cpu_pool_threads(pool);

    (void)state;
    for (int i = 0; i < 100; i++) {
        assert_int_equal(run_job(pool), all);
        cpu_pool_leave(pool, 1);
        assert_int_equal(run_job(pool), all > 1 ? all - 1 : 1);
        cpu_pool_leave(pool, MANY);
        assert_int_equal(run_job(pool), 1);
        cpu_pool_leave(pool, -MANY);
        assert_int_equal(run_job(pool), all > 1 ? all - 1 : 1);
        cpu_pool_leave(pool, -1);
    }
    cpu_pool_destroy(pool);
}

/* More threads than processors are what somebody asked for: while nobody else computes. */
static void test_more_threads_than_processors(void **state)
{
    cpu_pool *pool = open_pool(THREADS);

    (void)state;
    assert_int_equal(run_job(pool), THREADS);
    cpu_pool_leave(pool, MANY);
    assert_int_equal(run_job(pool), 1);
    cpu_pool_leave(pool, -MANY);
    assert_int_equal(run_job(pool), THREADS);
    cpu_pool_destroy(pool);
}

typedef struct stranger {
    cpu_pool *pool;
    _Atomic bool ended;
} stranger;

static void *come_and_go(void *context)
{
    stranger *s = context;

    while (!atomic_load(&s->ended)) {
        cpu_pool_leave(s->pool, MANY);
        cpu_pool_leave(s->pool, -MANY);
    }
    return NULL;
}

static void test_in_the_middle_of_jobs(void **state)
{
    stranger other = {.pool = open_pool(THREADS)};
    pthread_t thread;
    int seen[THREADS + 1] = {0};

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, come_and_go, &other), 0);
    for (int i = 0; i < JOBS; i++)
        seen[run_job(other.pool)]++;
    atomic_store(&other.ended, true);
    pthread_join(thread, NULL);
    assert_int_equal(seen[1] + seen[THREADS], JOBS);
    cpu_pool_destroy(other.pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_unit_once),
        cmocka_unit_test(test_processors_are_left),
        cmocka_unit_test(test_more_threads_than_processors),
        cmocka_unit_test(test_in_the_middle_of_jobs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
