/* loader.c: see loader.h. */
#include "engine/loader.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

typedef struct job_list {
    ol_job *head, **tail;
} job_list;

struct ol_loader {
    pthread_mutex_t lock; /* of all below but n_jobs */
    pthread_cond_t more;
    pthread_t thread;
    bool started, ending;
    job_list waiting, done;
    int fd; /* an eventfd: above 0 while `done` holds a job */
    int n_jobs;
};

static void list_init(job_list *list)
{
    list->head = NULL;
    list->tail = &list->head;
}

static void list_put(job_list *list, ol_job *job)
{
    job->next = NULL;
    *list->tail = job;
    list->tail = &job->next;
}

static ol_job *list_take(job_list *list)
{
    ol_job *job = list->head;

    if (!job)
        return NULL;
    list->head = job->next;
    if (!list->head)
        list->tail = &list->head;
    return job;
}

/* -- the thread ------------------------------------------------------------------------- */

static void count(int fd, bool up)
{
    uint64_t value = 1;
    ssize_t n;

    do
        n = up ? write(fd, &value, sizeof(value)) : read(fd, &value, sizeof(value));
    while (n < 0 && errno == EINTR);
}

static void *work(void *context)
{
    ol_loader *l = context;
    ol_job *job;

    pthread_mutex_lock(&l->lock);
    for (;;) {
        while (!l->ending && !l->waiting.head)
            pthread_cond_wait(&l->more, &l->lock);
        if (l->ending)
            break;
        job = list_take(&l->waiting);
        pthread_mutex_unlock(&l->lock);
        job->run(job);
        pthread_mutex_lock(&l->lock);
        if (!l->done.head)
            count(l->fd, true);
        list_put(&l->done, job);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* Signals are the engine thread's. */
static int start(ol_loader *l)
{
    sigset_t all, before;
    int failed;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    failed = pthread_create(&l->thread, NULL, work, l);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    l->started = !failed;
    return failed;
}

/* -- the engine's side --------------------------------------------------------------------- */

ol_code ol_loader_create(ol_loader **out, ol_error *err)
{
    ol_loader *l = calloc(1, sizeof(*l));

    if (!l)
        return ol_fail_nomem(err, sizeof(*l), "the loader");
    l->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (l->fd < 0) {
        free(l);
        return ol_fail_errno(err, "could not make", "an event descriptor");
    }
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->more, NULL);
    list_init(&l->waiting);
    list_init(&l->done);
    *out = l;
    return OL_OK;
}

void ol_loader_free(ol_loader *l, void (*drop)(ol_job *job, void *context), void *context)
{
    ol_job *job;

    if (!l)
        return;
    pthread_mutex_lock(&l->lock);
    l->ending = true;
    pthread_cond_signal(&l->more);
    pthread_mutex_unlock(&l->lock);
    if (l->started)
        pthread_join(l->thread, NULL);
    while ((job = list_take(&l->done)) || (job = list_take(&l->waiting)))
        drop(job, context);
    pthread_cond_destroy(&l->more);
    pthread_mutex_destroy(&l->lock);
    close(l->fd);
    free(l);
}

ol_code ol_loader_submit(ol_loader *l, ol_job *job, ol_error *err)
{
    int failed;

    if (!l->started && (failed = start(l)) != 0)
        return ol_fail(err, OL_DEVICE, "could not start the loader's thread: %s", strerror(failed));
    pthread_mutex_lock(&l->lock);
    list_put(&l->waiting, job);
    pthread_cond_signal(&l->more);
    pthread_mutex_unlock(&l->lock);
    l->n_jobs++;
    return OL_OK;
}

ol_job *ol_loader_next(ol_loader *l)
{
    ol_job *job;

    if (l->n_jobs == 0)
        return NULL;
    pthread_mutex_lock(&l->lock);
    job = list_take(&l->done);
    if (job && !l->done.head)
        count(l->fd, false);
    pthread_mutex_unlock(&l->lock);
    l->n_jobs -= job != NULL;
    return job;
}

int ol_loader_fd(const ol_loader *l)
{
    return l->fd;
}

int ol_loader_jobs(const ol_loader *l)
{
    return l->n_jobs;
}
