/* merge_child.c: see merge_child.h. */
#include "merge_child.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "progress.h"
#include "shared.h"
#include "storage/latch.h"
#include "utils/array.h"
#include "utils/timestamp.h"

#define PROGRESS_MS 5000 /* between notices */
#define MAX_SAID (1024 * 1024)
#define OOM_SCORE 800 /* where memory runs out, a merge goes before the engine */

/* -- the process ----------------------------------------------------------------------------- */

static void start(LoraMergeChild *child)
{
    ol_child program = {.args = child->args,
                        .out = -1,
                        .oom_score = OOM_SCORE,
                        .memory_limit = (size_t)lora_merge_memory << 20};
    int ends[2];

    if (pipe(ends) != 0)
        ereport(ERROR, (errcode_for_file_access(), errmsg("could not create a pipe: %m")));
    program.errors = ends[1];
    child->pid = ol_child_start(&program);
    close(ends[1]);
    child->errors = ends[0];
    if (child->pid < 0) {
        child->pid = 0;
        ereport(ERROR, (errcode(ERRCODE_SYSTEM_ERROR), errmsg("could not start a process: %m")));
    }
}

void lora_merge_child_end(LoraMergeChild *child)
{
    if (child->pid) {
        kill(child->pid, SIGKILL);
        while (waitpid(child->pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    if (child->errors >= 0)
        close(child->errors);
}

/* -- what it says ---------------------------------------------------------------------------- */

/* "PROGRESS done total", a line of its own. */
static void hear_line(const char *line, int *done, int *total)
{
    int n, of;

    if (sscanf(line, "PROGRESS %d %d", &n, &of) != 2)
        return;
    if (of != *total)
        lora_progress_phase(LORA_MERGE_MERGING, of);
    lora_progress_done(n);
    *done = n;
    *total = of;
}

/* Lines that are whole by now. */
static void hear_lines(LoraMergeChild *child, int *done, int *total)
{
    char *end;

    while ((end = strchr(child->said.data + child->heard, '\n')) != NULL) {
        hear_line(child->said.data + child->heard, done, total);
        child->heard = (int)(end + 1 - child->said.data);
    }
}

/* Waits for what it says: false at its end. */
static bool hear(LoraMergeChild *child)
{
    char piece[4096];
    ssize_t n;
    int event = WaitLatchOrSocket(
        MyLatch, WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
        child->errors, PROGRESS_MS, lora_wait_event());

    if (event & WL_LATCH_SET)
        ResetLatch(MyLatch);
    CHECK_FOR_INTERRUPTS();
    if (!(event & WL_SOCKET_READABLE))
        return true;
    n = read(child->errors, piece, sizeof(piece));
    if (n > 0 && child->said.len < MAX_SAID)
        appendBinaryStringInfo(&child->said, piece, (int)n);
    return n > 0;
}

/* Until it closes its standard error, at its end. */
static void listen_to(LoraMergeChild *child)
{
    TimestampTz told = GetCurrentTimestamp();
    int done = 0, total = 0;

    while (hear(child)) {
        hear_lines(child, &done, &total);
        if (!total || !TimestampDifferenceExceeds(told, GetCurrentTimestamp(), PROGRESS_MS))
            continue;
        told = GetCurrentTimestamp();
        ereport(NOTICE, (errmsg("merged %d of %d modules", done, total)));
    }
    while (waitpid(child->pid, &child->status, 0) < 0 && errno == EINTR)
        ;
    child->pid = 0;
}

Datum lora_merge_child_parts(const LoraMergeChild *child, int n)
{
    Datum *parts = palloc(sizeof(Datum) * (Size)n);
    const char *p = child->said.data;

    for (int i = 0; i < n; i++) {
        int number;
        double part;

        p = p ? strstr(p, "PART ") : NULL;
        if (!p || sscanf(p, "PART %d %lf", &number, &part) != 2 || number != i || !(part >= 0))
            ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
                            errmsg("openlora-merge did not say what it had merged")));
        parts[i] = Float8GetDatum(part);
        p++;
    }
    return PointerGetDatum(
        construct_array(parts, n, FLOAT8OID, sizeof(float8), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* "ERROR code message", detail, hint: a line each. */
static void raise_said(const LoraMergeChild *child)
{
    char *at = strstr(child->said.data, "ERROR "), *lines[3] = {"", "", ""};
    int code = OL_INTERNAL, skip = 0;
    ol_error error;

    if (!at || sscanf(at, "ERROR %d %n", &code, &skip) < 1 || code <= OL_OK || code > OL_CODE_LAST)
        ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
                        errmsg("openlora-merge %s", WIFSIGNALED(child->status)
                                                        ? "was terminated by a signal"
                                                        : "could not be run"),
                        errdetail("Signal %d, exit status %d.",
                                  WIFSIGNALED(child->status) ? WTERMSIG(child->status) : 0,
                                  WIFEXITED(child->status) ? WEXITSTATUS(child->status) : 0)));
    at += skip;
    for (int i = 0; i < 3; i++) {
        lines[i] = at;
        at = strchr(at, '\n');
        if (!at)
            break;
        *at++ = '\0';
    }
    ol_fail(&error, (ol_code)code, "%s", lines[0]);
    ol_detail(&error, "%s", lines[1]);
    ol_hint(&error, "%s", lines[2]);
    if (error.code == OL_NOMEM && lora_merge_memory > 0)
        ol_hint(&error, "A merge has openlora.merge_memory, now %d MB, at most.",
                lora_merge_memory);
    lora_raise(&error);
}

void lora_merge_child_run(LoraMergeChild *child)
{
    child->errors = -1;
    initStringInfo(&child->said);
    start(child);
    listen_to(child);
    if (!WIFEXITED(child->status) || WEXITSTATUS(child->status) != 0)
        raise_said(child);
}
