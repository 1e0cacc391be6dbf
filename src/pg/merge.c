/*
 * merge.c: openlora.run_merge: the program openlora-merge as a child of this backend.
 *
 * Merging is minutes of linear algebra on bytes that nobody vouches for: it is done in a
 * process of its own, which a cancel kills, and whose crash is an error here and nothing
 * else. Adapters go to it and come back as files in a temporary folder, which PostgreSQL
 * removes at its start should nobody have done so before.
 */
#include "lora_pg.h"

#include <sys/stat.h>

#include "catalog/pg_type.h"
#include "common/file_utils.h"
#include "funcapi.h"
#include "merge_child.h"
#include "miscadmin.h"
#include "progress.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "utf8.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

PG_FUNCTION_INFO_V1(lora_run_merge);

#define BASE "base/" PG_TEMP_FILES_DIR

typedef struct Merge {
    char folder[MAXPGPATH]; /* empty: none was made */
    LoraMergeChild child;
} Merge;

/* -- files ----------------------------------------------------------------------------------- */

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
        const char *text = lora_to_utf8(local);

        PathNameCreateTemporaryDir(BASE, folder);
        write_file(folder, "adapter_model.safetensors", VARDATA_ANY(bytes),
                   VARSIZE_ANY_EXHDR(bytes));
        write_file(folder, "adapter_config.json", text, strlen(text));
        lora_progress_done(i + 1);
    }
}

/* -- the program's arguments ------------------------------------------------------------------ */

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

static void add(Merge *merge, char *arg)
{
    merge->child.args[merge->child.n_args++] = arg;
    merge->child.args[merge->child.n_args] = NULL;
}

static void add_option(Merge *merge, const char *name, char *value)
{
    add(merge, psprintf("--%s", name));
    add(merge, value);
}

static void add_arguments(FunctionCallInfo fcinfo, Merge *merge, Datum *factors, Datum *names,
                          int n)
{
    merge->child.args = palloc(sizeof(char *) * (Size)(3 * n + 32));
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

/* -- the function ---------------------------------------------------------------------------- */

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

static void run(FunctionCallInfo fcinfo, Merge *merge, Datum *values)
{
    Datum *weights, *configs, *factors, *names;
    int n, n_configs, n_factors, n_names;
    bytea *config;
    char *json;

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
    lora_progress_begin(LORA_JOB_MERGE, n, text_to_cstring(PG_GETARG_TEXT_PP(ARG_METHOD)),
                        GetUserId());
    lora_progress_phase(LORA_MERGE_READING, n);
    make_folder(merge);
    write_parents(merge, weights, configs, n);
    add_arguments(fcinfo, merge, factors, names, n);
    lora_progress_phase(LORA_MERGE_MERGING, 0);
    lora_merge_child_run(&merge->child);
    lora_progress_phase(LORA_MERGE_WRITING, 0);
    values[0] =
        PointerGetDatum(read_file(psprintf("%s/out", merge->folder), "adapter_model.safetensors"));
    config = read_file(psprintf("%s/out", merge->folder), "adapter_config.json");
    json = pnstrdup(VARDATA(config), VARSIZE(config) - VARHDRSZ);
    values[1] = DirectFunctionCall1(jsonb_in, CStringGetDatum(lora_from_utf8(json)));
    values[2] = lora_merge_child_parts(&merge->child, n);
}

static void clean_up(int code, Datum arg)
{
    Merge *merge = (Merge *)DatumGetPointer(arg);

    lora_progress_end(code, arg);
    lora_merge_child_end(&merge->child);
    if (merge->folder[0])
        PathNameDeleteTemporaryDir(merge->folder);
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
    PreventCommandIfReadOnly("lora_adapter_merge()"); /* before the work, not after it */
    merge->child.errors = -1;
    /* a termination, too, leaves neither process nor files: PG_FINALLY does not see it */
    PG_ENSURE_ERROR_CLEANUP(clean_up, PointerGetDatum(merge));
    {
        run(fcinfo, merge, values);
    }
    PG_END_ENSURE_ERROR_CLEANUP(clean_up, PointerGetDatum(merge));
    clean_up(0, PointerGetDatum(merge));
    PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
