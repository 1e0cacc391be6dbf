/* child.c: see child.h. */
#include "base/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NOT_RUN 127         /* as shells say it */
#define MAX_FILES (1 << 20) /* of a process, unless the kernel's fs.nr_open was raised */

/* -- between fork and exec: only calls that are safe there ---------------------------------- */

static void close_between(unsigned first, unsigned last)
{
    if (first > last)
        return;
#ifdef SYS_close_range
    if (syscall(SYS_close_range, first, last, 0) == 0)
        return;
#endif
    for (unsigned fd = first; fd <= last && fd < MAX_FILES; fd++)
        close((int)fd);
}

static void close_all_but(const int *keep, int n)
{
    unsigned first = 3;

    for (int i = 0; i < n; i++) {
        close_between(first, (unsigned)keep[i] - 1);
        first = (unsigned)keep[i] + 1;
    }
    close_between(first, ~0u);
}

static void set_files(const ol_child *c)
{
    if ((c->out >= 0 && dup2(c->out, 1) < 0) || dup2(c->errors, 2) < 0)
        _exit(NOT_RUN);
    close_all_but(c->keep, c->n_keep);
    close(0);
    if (open("/dev/null", O_RDWR) != 0 || (c->out < 0 && dup2(0, 1) < 0))
        _exit(NOT_RUN);
}

/* By the kernel's own call: signal() leaves out the two that the C library has for itself, which
 * some programs hand down ignored. */
static void set_signals(void)
{
    const unsigned long by_default[8] = {0}; /* the kernel's sigaction: no handler, flags or mask */
    sigset_t none;

    for (int sig = 1; sig < NSIG; sig++)
        syscall(SYS_rt_sigaction, sig, by_default, NULL, (size_t)(NSIG - 1) / 8);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* What runs out of memory is this process, and no other: by the limit of its own, or as the first
 * to go. */
static void bound_memory(const ol_child *c, const char *score)
{
    struct rlimit limit = {c->memory_limit, c->memory_limit};
    int file = open("/proc/self/oom_score_adj", O_WRONLY);

    if (c->memory_limit > 0)
        (void)setrlimit(RLIMIT_AS, &limit);
    if (file < 0)
        return;
    if (write(file, score, strlen(score)) < 0)
        (void)0; /* then it goes when its size says so */
    close(file);
}

static void become(const ol_child *c, const char *score, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    set_files(c);
    bound_memory(c, score);
    set_signals();
    execv(c->args[0], c->args);
    _exit(NOT_RUN);
}

/* -- the parent ------------------------------------------------------------------------------- */

/* Nothing is delivered to the child while the parent's handlers are in place. */
pid_t ol_child_start(const ol_child *c)
{
    sigset_t all, before;
    pid_t pid, parent = getpid();
    char score[16];
    int error;

    snprintf(score, sizeof(score), "%d", c->oom_score);
    fflush(NULL);
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    pid = fork();
    if (pid == 0)
        become(c, score, parent);
    error = errno;
    sigprocmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return pid;
}
