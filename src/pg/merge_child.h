/*
 * merge_child.h: the program openlora-merge as a child of this backend: started, listened to,
 * ended. Its standard error tells what it does and how it went: src/merge/main.c.
 */
#ifndef LORA_MERGE_CHILD_H
#define LORA_MERGE_CHILD_H

#include "lora_pg.h"

#include "lib/stringinfo.h"

typedef struct LoraMergeChild {
    char **args; /* the program's path first; room for all of them */
    int n_args;
    pid_t pid;  /* 0: none runs */
    int status; /* of waitpid */
    int errors; /* its standard error; -1 */
    StringInfoData said;
    int heard; /* of `said`: whole lines that were looked at */
} LoraMergeChild;

/* Starts it, shows how far it is, and waits for its end. Raises what it says went wrong. */
extern void lora_merge_child_run(LoraMergeChild *child);
/* What the n parents have a part in, as it said: a float8[]. */
extern Datum lora_merge_child_parts(const LoraMergeChild *child, int n);
/* Ends it if it runs, and closes what is open. */
extern void lora_merge_child_end(LoraMergeChild *child);

#endif
