/* test_child.c: what a program begins with that is started as a child. */
#include "base/child.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static void read_all(int fd, char *out, size_t size)
{
    size_t len = 0;
    ssize_t n;

    while ((n = read(fd, out + len, size - 1 - len)) > 0)
        len += (size_t)n;
    assert_true(n == 0);
    out[len] = '\0';
}

static int exit_status(pid_t pid)
{
    int status;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* What a program prints that is started so. */
static void output_of(ol_child child, const char *program, const char *argument, char *out,
                      size_t size)
{
    char *args[] = {(char *)(uintptr_t)program, (char *)(uintptr_t)argument, NULL};
    int ends[2];
    pid_t pid;

    assert_int_equal(pipe(ends), 0);
    child.args = args;
    child.out = child.errors = ends[1];
    pid = ol_child_start(&child);
    assert_true(pid > 0);
    close(ends[1]);
    read_all(ends[0], out, size);
    close(ends[0]);
    assert_int_equal(exit_status(pid), 0);
}

/* The highest number that this process may use, but one that a loop to 4096 would not meet. */
static int highest(void)
{
    struct rlimit limit;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_max > 20000)
        limit.rlim_max = 20000;
    limit.rlim_cur = limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    return (int)limit.rlim_cur - 1;
}

static void test_descriptors(void **state)
{
    int null = open("/dev/null", O_RDWR), keep[] = {50, 60}, others[] = {49, 51, 61, highest()};
    ol_child child = {.keep = keep, .n_keep = 2};
    char out[4096];

    (void)state;
    for (int i = 0; i < 2; i++)
        assert_int_equal(dup2(null, keep[i]), keep[i]);
    for (int i = 0; i < 4; i++)
        assert_int_equal(dup2(null, others[i]), others[i]);
    output_of(child, "/bin/ls", "/proc/self/fd", out, sizeof(out));
    assert_string_equal(out, "0\n1\n2\n3\n50\n60\n"); /* 3 is the folder that it reads */
    child.n_keep = 0;
    output_of(child, "/bin/ls", "/proc/self/fd", out, sizeof(out));
    assert_string_equal(out, "0\n1\n2\n3\n");
    for (int i = 0; i < 4; i++)
        close(others[i]);
    for (int i = 0; i < 2; i++)
        close(keep[i]);
    close(null);
}

static void handle(int sig)
{
    (void)sig;
}

static void test_signals(void **state)
{
    const unsigned long ignore[8] = {1}, by_default[8] = {0}; /* as the kernel has it */
    ol_child child = {0};
    sigset_t some, before, after;
    char out[8192];

    (void)state;
    signal(SIGPIPE, SIG_IGN);
    syscall(SYS_rt_sigaction, 33, ignore, NULL, (size_t)8); /* one of the C library's own */
    signal(SIGRTMIN, SIG_IGN);
    signal(SIGTERM, handle);
    sigemptyset(&some);
    sigaddset(&some, SIGUSR1);
    sigprocmask(SIG_BLOCK, &some, &before);
    output_of(child, "/bin/cat", "/proc/self/status", out, sizeof(out));
    assert_non_null(strstr(out, "SigBlk:\t0000000000000000\n"));
    assert_non_null(strstr(out, "SigIgn:\t0000000000000000\n"));
    sigprocmask(SIG_SETMASK, NULL, &after); /* and the parent's are as they were */
    assert_true(sigismember(&after, SIGUSR1) && !sigismember(&after, SIGTERM));
    assert_true(signal(SIGTERM, SIG_DFL) == handle);
    assert_true(signal(SIGPIPE, SIG_DFL) == SIG_IGN);
    signal(SIGRTMIN, SIG_DFL);
    syscall(SYS_rt_sigaction, 33, by_default, NULL, (size_t)8);
    sigprocmask(SIG_SETMASK, &before, NULL);
}

static void test_memory(void **state)
{
    ol_child child = {.oom_score = 805, .memory_limit = (size_t)1 << 30};
    char out[8192];

    (void)state;
    output_of(child, "/bin/cat", "/proc/self/oom_score_adj", out, sizeof(out));
    assert_string_equal(out, "805\n");
    output_of(child, "/bin/cat", "/proc/self/limits", out, sizeof(out));
    assert_non_null(strstr(out, "Max address space         1073741824           1073741824"));
}

static void test_no_program(void **state)
{
    char *args[] = {"/nonexistent/program", NULL};
    ol_child child = {.args = args, .out = -1, .errors = 2};

    (void)state;
    assert_int_equal(exit_status(ol_child_start(&child)), 127);
}

/* The parent's parent sees the end of the child's output: the child is gone with the parent. */
static void test_end_with_the_parent(void **state)
{
    char *args[] = {"/bin/sleep", "100000", NULL};
    ol_child child = {.args = args};
    char out[16];
    int ends[2];
    pid_t parent;

    (void)state;
    assert_int_equal(pipe(ends), 0);
    parent = fork();
    if (parent == 0) {
        child.out = child.errors = ends[1];
        _exit(ol_child_start(&child) > 0 ? 0 : 1);
    }
    assert_int_equal(exit_status(parent), 0);
    close(ends[1]);
    read_all(ends[0], out, sizeof(out));
    close(ends[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_descriptors),
        cmocka_unit_test(test_signals),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_no_program),
        cmocka_unit_test(test_end_with_the_parent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
