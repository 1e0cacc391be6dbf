/*
 * child.h: a program as a child, that begins with nothing of its parent's but what it is given.
 *
 * It has default signals and none of them blocked, no descriptors but those that are named, and
 * dies with the thread that started it. What is not named here stays: environment, folder, user.
 */
#ifndef OL_BASE_CHILD_H
#define OL_BASE_CHILD_H

#include <stddef.h>
#include <sys/types.h>

typedef struct ol_child {
    char *const *args; /* the program's path first; NULL at the end */
    int out;           /* becomes its standard output; -1: nobody listens */
    int errors;        /* becomes its standard error; neither is 0 or 1 */
    const int *keep;   /* stay open under their numbers: ascending, above 2 */
    int n_keep;
    int oom_score;       /* how soon the machine ends it when memory is short: to 1000, at once */
    size_t memory_limit; /* of its address space, bytes; 0: none */
} ol_child;

/* Its process id, or -1 and errno. A program that cannot be run exits with 127. */
pid_t ol_child_start(const ol_child *child);

#endif
