/*
 * merge.c: openlora.run_merge: the program openlora-merge as a child of this backend.
 *
 * Merging is minutes of linear algebra on bytes that nobody vouches for: it is done in a
 * process of its own, which a cancel kills, and whose crash is an error here and nothing
 * else. Adapters go to it and come back as files in a temporary folder, which PostgreSQL
 * removes at its start should nobody have done so before.
 */
#include "lora_pg.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "catalog/pg_type.h"
#include "common/file_utils.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "pgstat.h"
#include "shared.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

PG_FUNCTION_INFO_V1(lora_run_merge);

#define BASE "base/" PG_TEMP_FILES_DIR
#define PROGRESS_MS 5000

typedef struct Merge {
    char folder[MAXPGPATH]; /* empty: none was made */
    pid_t pid;              /* 0: none runs */
    int status;             /* of waitpid */
    int errors;             /* its standard error; -1 */
    StringInfoData said;
    char **args;
    int n_args;
} Merge;

/* -- files ------------------------------------------------------------------------------------- */

static void make_folder(Merge *merge)
{
    static int count;

    snprintf(merge->folder, MAXPGPATH, "%s/%s_openlora_merge.%d.%d", BASE, PG_TEMP_FILE_PREFIX,
             MyProcPid, ++count);
    PathNameCreateTemporaryDir(BASE, merge->folder);
}

static void write_file(const char *folder, const char *name, const void *bytes, Size length)
{
    char path[MAXPGPATH];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    file = AllocateFile(path, PG_BINARY_W);
    if (!file || fwrite(bytes, 1, length, file) != length || FreeFile(file) != 0)
        ereport(ERROR,
                (errcode_for_file_access(), errmsg("could not write file \"%s\": %m", path)));
}

static bytea *read_file(const char *folder, const char *name)
{
    char path[MAXPGPATH];
    struct stat st;
    bytea *bytes;
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    file = AllocateFile(path, PG_BINARY_R);
    if (!file || fstat(fileno(file), &st) != 0)
        ereport(ERROR, (errcode_for_file_access(), errmsg("could not open file \"%s\": %m", path)));
    if (st.st_size > (off_t)(MaxAllocSize - VARHDRSZ))
        ereport(ERROR,
                (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
                 errmsg("the merged adapter is too large: %lld bytes", (long long)st.st_size),
                 errhint("svd with a smaller svd_rank makes it smaller.")));
    bytes = palloc(VARHDRSZ + (Size)st.st_size);
    SET_VARSIZE(bytes, VARHDRSZ + (Size)st.st_size);
    if (fread(VARDATA(bytes), 1, (size_t)st.st_size, file) != (size_t)st.st_size)
        ereport(ERROR, (errcode_for_file_access(), errmsg("could not read file \"%s\": %m", path)));
    FreeFile(file);
    return bytes;
}

/* A parent's folder is its number. */
static void write_parents(Merge *merge, Datum *weights, Datum *configs, int n)
{
    for (int i = 0; i < n; i++) {
        char *folder = psprintf("%s/%d", merge->folder, i + 1);
        bytea *bytes = DatumGetByteaPP(weights[i]);
        Jsonb *config = DatumGetJsonbP(configs[i]);
        char *local = JsonbToCString(NULL, &config->root, VARSIZE(config));
        char *text = pg_server_to_any(local, (int)strlen(local), PG_UTF8);

        PathNameCreateTemporaryDir(BASE, folder);
        write_file(folder, "adapter_model.safetensors", VARDATA_ANY(bytes),
                   VARSIZE_ANY_EXHDR(bytes));
        write_file(folder, "adapter_config.json", text, strlen(text));
    }
}

/* -- the child -----------------------------------------------------------------------------------
 */

static void add(Merge *merge, char *arg)
{
    merge->args[merge->n_args++] = arg;
    merge->args[merge->n_args] = NULL;
}

static void add_option(Merge *merge, const char *name, char *value)
{
    add(merge, psprintf("--%s", name));
    add(merge, value);
}

/* Between fork and exec, as the rest. What runs out of memory is the merge, and nothing else: its
 * own, by the limit, or the machine's, as the first to go. */
static void bound_memory(void)
{
    struct rlimit limit = {(rlim_t)lora_merge_memory << 20, (rlim_t)lora_merge_memory << 20};
    int score = open("/proc/self/oom_score_adj", O_WRONLY);

    if (lora_merge_memory > 0)
        (void)setrlimit(RLIMIT_AS, &limit);
    if (score < 0)
        return;
    if (write(score, "800", 3) < 0)
        (void)0;
    close(score);
}

/* Between fork and exec: only calls that are safe there. */
static void become_program(char **args, int errors, pid_t parent)
{
    sigset_t none;
    int null = open("/dev/null", O_RDWR);

    bound_memory();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    for (int sig = 1; sig < 32; sig++)
        signal(sig, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (null >= 0) {
        dup2(null, 0);
        dup2(null, 1);
    }
    dup2(errors, 2);
    for (int fd = 3; fd < 4096; fd++)
        close(fd);
    execv(args[0], args);
    _exit(127);
}

static void start(Merge *merge)
{
    pid_t parent = getpid();
    int ends[2];

    if (pipe(ends) != 0)
        ereport(ERROR, (errcode_for_file_access(), errmsg("could not create a pipe: %m")));
    fflush(NULL);
    merge->pid = fork();
    if (merge->pid == 0)
        become_program(merge->args, ends[1], parent);
    close(ends[1]);
    merge->errors = ends[0];
    if (merge->pid < 0) {
        merge->pid = 0;
        ereport(ERROR, (errcode(ERRCODE_SYSTEM_ERROR), errmsg("could not start a process: %m")));
    }
}

/* The last "PROGRESS done total" that was said. */
/* What the parents have a part in, as it was said: "PART number size", from 0. */
static Datum parts_said(const Merge *merge, int n)
{
    Datum *parts = palloc(sizeof(Datum) * (Size)n);
    const char *p = merge->said.data;

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

static void tell_progress(const Merge *merge)
{
    const char *last = NULL;
    int done, total;

    for (const char *p = strstr(merge->said.data, "PROGRESS "); p; p = strstr(p + 1, "PROGRESS "))
        last = p;
    if (last && sscanf(last, "PROGRESS %d %d", &done, &total) == 2)
        ereport(NOTICE, (errmsg("merged %d of %d modules", done, total)));
}

/* Until it closes its standard error, at its end. */
static void listen_to(Merge *merge)
{
    TimestampTz told = GetCurrentTimestamp();
    char piece[4096];
    ssize_t n = 1;

    while (n > 0) {
        int event = WaitLatchOrSocket(
            MyLatch, WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
            merge->errors, PROGRESS_MS, lora_wait_event());

        if (event & WL_LATCH_SET)
            ResetLatch(MyLatch);
        CHECK_FOR_INTERRUPTS();
        if (event & WL_SOCKET_READABLE) {
            n = read(merge->errors, piece, sizeof(piece));
            if (n > 0 && merge->said.len < 1024 * 1024)
                appendBinaryStringInfo(&merge->said, piece, (int)n);
        }
        if (TimestampDifferenceExceeds(told, GetCurrentTimestamp(), PROGRESS_MS)) {
            told = GetCurrentTimestamp();
            tell_progress(merge);
        }
    }
    while (waitpid(merge->pid, &merge->status, 0) < 0 && errno == EINTR)
        ;
    merge->pid = 0;
}

/* "ERROR code message", detail, hint: a line each. */
static void raise_said(const Merge *merge)
{
    char *at = strstr(merge->said.data, "ERROR "), *lines[3] = {"", "", ""};
    int code = OL_INTERNAL, skip = 0;
    ol_error error;

    if (!at || sscanf(at, "ERROR %d %n", &code, &skip) < 1 || code <= OL_OK || code > OL_CODE_LAST)
        ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
                        errmsg("openlora-merge %s", WIFSIGNALED(merge->status)
                                                        ? "was terminated by a signal"
                                                        : "could not be run"),
                        errdetail("Signal %d, exit status %d.",
                                  WIFSIGNALED(merge->status) ? WTERMSIG(merge->status) : 0,
                                  WIFEXITED(merge->status) ? WEXITSTATUS(merge->status) : 0)));
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

static void clean_up(int code, Datum arg)
{
    Merge *merge = (Merge *)DatumGetPointer(arg);

    (void)code;
    if (merge->pid) {
        kill(merge->pid, SIGKILL);
        while (waitpid(merge->pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    if (merge->errors >= 0)
        close(merge->errors);
    if (merge->folder[0])
        PathNameDeleteTemporaryDir(merge->folder);
}

/* -- the function
 * ---------------------------------------------------------------------------------- */

enum {
    ARG_NAMES,
    ARG_WEIGHTS,
    ARG_CONFIGS,
    ARG_FACTORS,
    ARG_METHOD,
    ARG_DENSITY,
    ARG_SIGN,
    ARG_RANK,
    ARG_SEED,
    ARG_CLAMP
};

/* The function cannot be strict: no density and no rank have a meaning. */
static void refuse_nulls(FunctionCallInfo fcinfo)
{
    static const char *const needed[] = {
        [ARG_NAMES] = "names",     [ARG_WEIGHTS] = "adapters", [ARG_CONFIGS] = "configs",
        [ARG_FACTORS] = "weights", [ARG_METHOD] = "method",    [ARG_SIGN] = "majority_sign_method",
        [ARG_SEED] = "seed"};

    for (int i = 0; i < (int)lengthof(needed); i++)
        if (needed[i] && PG_ARGISNULL(i))
            ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
                            errmsg("%s of a merge must not be null", needed[i])));
}

static void add_arguments(FunctionCallInfo fcinfo, Merge *merge, Datum *factors, Datum *names,
                          int n)
{
    merge->args = palloc(sizeof(char *) * (Size)(3 * n + 32));
    add(merge, psprintf("%s/openlora-merge", pkglib_path));
    add(merge, "--progress");
    add_option(merge, "out", psprintf("%s/out", merge->folder));
    add_option(merge, "method", text_to_cstring(PG_GETARG_TEXT_PP(ARG_METHOD)));
    if (!PG_ARGISNULL(ARG_DENSITY))
        add_option(merge, "density", psprintf("%.17g", PG_GETARG_FLOAT8(ARG_DENSITY)));
    add_option(merge, "sign", text_to_cstring(PG_GETARG_TEXT_PP(ARG_SIGN)));
    if (!PG_ARGISNULL(ARG_RANK))
        add_option(merge, "rank", psprintf("%d", PG_GETARG_INT32(ARG_RANK)));
    if (!PG_ARGISNULL(ARG_CLAMP))
        add_option(merge, "clamp", psprintf("%.17g", PG_GETARG_FLOAT8(ARG_CLAMP)));
    add_option(merge, "seed", psprintf(UINT64_FORMAT, (uint64)PG_GETARG_INT64(ARG_SEED)));
    for (int i = 0; i < n; i++)
        add_option(merge, "name", TextDatumGetCString(names[i]));
    add(merge, "--");
    for (int i = 0; i < n; i++)
        add(merge, psprintf("%s/%d=%.17g", merge->folder, i + 1, DatumGetFloat8(factors[i])));
}

static void run(FunctionCallInfo fcinfo, Merge *merge, Datum *values)
{
    Datum *weights, *configs, *factors, *names;
    int n, n_configs, n_factors, n_names;
    bytea *config;

    refuse_nulls(fcinfo);
    deconstruct_array(PG_GETARG_ARRAYTYPE_P(ARG_NAMES), TEXTOID, -1, false, TYPALIGN_INT, &names,
                      NULL, &n_names);
    deconstruct_array(PG_GETARG_ARRAYTYPE_P(ARG_WEIGHTS), BYTEAOID, -1, false, TYPALIGN_INT,
                      &weights, NULL, &n);
    deconstruct_array(PG_GETARG_ARRAYTYPE_P(ARG_CONFIGS), JSONBOID, -1, false, TYPALIGN_INT,
                      &configs, NULL, &n_configs);
    deconstruct_array(PG_GETARG_ARRAYTYPE_P(ARG_FACTORS), FLOAT8OID, 8, FLOAT8PASSBYVAL,
                      TYPALIGN_DOUBLE, &factors, NULL, &n_factors);
    if (n != n_configs || n != n_factors || n != n_names)
        ereport(ERROR, (errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
                        errmsg("arrays of the same length are expected")));
    make_folder(merge);
    write_parents(merge, weights, configs, n);
    add_arguments(fcinfo, merge, factors, names, n);
    start(merge);
    listen_to(merge);
    if (!WIFEXITED(merge->status) || WEXITSTATUS(merge->status) != 0)
        raise_said(merge);
    values[0] =
        PointerGetDatum(read_file(psprintf("%s/out", merge->folder), "adapter_model.safetensors"));
    config = read_file(psprintf("%s/out", merge->folder), "adapter_config.json");
    values[1] = DirectFunctionCall1(
        jsonb_in,
        CStringGetDatum(pg_any_to_server(pnstrdup(VARDATA(config), VARSIZE(config) - VARHDRSZ),
                                         (int)(VARSIZE(config) - VARHDRSZ), PG_UTF8)));
    values[2] = parts_said(merge, n);
}

/* openlora.run_merge(names, weights bytea[], configs jsonb[], factors float8[], method,
 *  density, sign, rank, seed, clamp) -> (weights, config, parts) */
Datum lora_run_merge(PG_FUNCTION_ARGS)
{
    Merge *merge = palloc0(sizeof(*merge));
    TupleDesc desc;
    Datum values[3];
    bool nulls[3] = {false};

    if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "run_merge must return a row");
    merge->errors = -1;
    initStringInfo(&merge->said);
    /* a termination, too, leaves neither process nor files: PG_FINALLY does not see it */
    PG_ENSURE_ERROR_CLEANUP(clean_up, PointerGetDatum(merge));
    {
        run(fcinfo, merge, values);
    }
    PG_END_ENSURE_ERROR_CLEANUP(clean_up, PointerGetDatum(merge));
    clean_up(0, PointerGetDatum(merge));
    PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
