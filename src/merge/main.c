/*
 * openlora-merge: merges LoRA adapters: see merge.h. A program of its own, so that neither a
 * database session nor the engine computes it, waits for it, or can be harmed by it.
 *
 * Each ADAPTER is a folder as PEFT saves it. Progress goes to standard error, a line
 * "PROGRESS done total" each; in the end "PART number size" of each ADAPTER, from 0.
 */
#include "base/arena.h"
#include "merge/merge.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char usage[] =
    "usage: openlora-merge --method METHOD --out FOLDER [options] ADAPTER=WEIGHT...\n"
    "  --method   linear, cat, svd, ties, ties_svd, dare_linear, dare_linear_svd, dare_ties,\n"
    "             dare_ties_svd, magnitude_prune, magnitude_prune_svd\n"
    "  --density  part of the values that pruning keeps, 0 to 1\n"
    "  --sign     total or frequency: how ties elects a sign (total)\n"
    "  --rank     of svd's result (the largest of the adapters)\n"
    "  --clamp    the quantile of svd's values that they are clamped to, above 0 to 1 (none)\n"
    "  --seed     of what dare drops (0)\n"
    "  --name     what errors call an adapter, once for each, in order (its folder)\n"
    "  --type     F32, F16 or BF16 (that of the first adapter)\n"
    "  --progress tell how far it is, and what part each adapter has\n";

typedef struct command {
    ol_merge_options options;
    const char *out;
    bool typed, progress;
    int n, n_names;
    char *paths[OL_MERGE_MAX_PARENTS];
    const char *names[OL_MERGE_MAX_PARENTS];
    double weights[OL_MERGE_MAX_PARENTS];
} command;

typedef struct input {
    ol_adapter_disk disk;
    ol_adapter_file file;
} input;

/* -- the command line ---------------------------------------------------------------------- */

static ol_code read_number(const char *name, const char *text, double *value, ol_error *err)
{
    char *end;

    errno = 0;
    *value = strtod(text, &end);
    if (end == text || *end || errno)
        return ol_fail(err, OL_INVALID, "%s is no number: \"%s\"", name, text);
    return OL_OK;
}

static ol_code read_type(const char *text, ol_dtype *type, ol_error *err)
{
    static const ol_dtype types[] = {OL_F32, OL_F16, OL_BF16};

    for (int i = 0; i < 3; i++)
        if (strcmp(text, ol_dtype_name(types[i])) == 0) {
            *type = types[i];
            return OL_OK;
        }
    return ol_fail(err, OL_INVALID, "a type is F32, F16 or BF16, not \"%s\"", text);
}

static ol_code read_seed(const char *text, uint64_t *seed, ol_error *err)
{
    char *end;

    errno = 0;
    *seed = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno)
        return ol_fail(err, OL_INVALID, "a seed is a whole number below 2^64, not \"%s\"", text);
    return OL_OK;
}

static ol_code read_name(command *c, const char *name, ol_error *err)
{
    if (c->n_names == OL_MERGE_MAX_PARENTS)
        return ol_fail(err, OL_INVALID, "at most %d adapters are merged", OL_MERGE_MAX_PARENTS);
    c->names[c->n_names++] = name;
    return OL_OK;
}

static ol_code read_option(command *c, int option, const char *value, ol_error *err)
{
    double number = 0;

    switch (option) {
    case 'm':
        c->options.method = ol_merge_method_named(value);
        if (c->options.method)
            return OL_OK;
        ol_fail(err, OL_INVALID, "there is no method \"%s\"", value);
        return ol_hint(err, "linear, cat, svd, ties, dare_linear, dare_ties, magnitude_prune, and "
                            "with _svd after one of the last four.");
    case 'd':
        return read_number("density", value, &c->options.density, err);
    case 's':
        c->options.sign_by_count = strcmp(value, "frequency") == 0;
        if (!c->options.sign_by_count && strcmp(value, "total") != 0)
            return ol_fail(err, OL_INVALID,
                           "the majority sign is by total or frequency, not \"%s\"", value);
        return OL_OK;
    case 'r':
        OL_TRY(read_number("rank", value, &number, err));
        if (!(number >= 1 && number <= OL_MAX_RANK) || number != floor(number))
            return ol_fail(err, OL_INVALID, "a rank is from 1 to %d, not %s", OL_MAX_RANK, value);
        c->options.rank = (int)number;
        return OL_OK;
    case 'c':
        OL_TRY(read_number("svd_clamp", value, &c->options.clamp, err));
        if (!(c->options.clamp > 0))
            c->options.clamp = -1; /* is refused by its name */
        return OL_OK;
    case 'S':
        return read_seed(value, &c->options.seed, err);
    case 'n':
        return read_name(c, value, err);
    case 't':
        c->typed = true;
        return read_type(value, &c->options.dtype, err);
    case 'o':
        c->out = value;
        return OL_OK;
    case 'p':
        c->progress = true;
        return OL_OK;
    default:
        return ol_fail(err, OL_INVALID, "bad option");
    }
}

static ol_code read_parent(command *c, char *text, ol_error *err)
{
    char *weight = strrchr(text, '=');

    if (!weight || c->n == OL_MERGE_MAX_PARENTS)
        return ol_fail(err, OL_INVALID, "1 to %d ADAPTER=WEIGHT are expected",
                       OL_MERGE_MAX_PARENTS);
    *weight = '\0';
    c->paths[c->n] = text;
    return read_number("a weight", weight + 1, &c->weights[c->n++], err);
}

static ol_code read_command(int argc, char **argv, command *c, ol_error *err)
{
    static const struct option options[] = {
        {"method", 1, NULL, 'm'}, {"density", 1, NULL, 'd'},  {"sign", 1, NULL, 's'},
        {"rank", 1, NULL, 'r'},   {"seed", 1, NULL, 'S'},     {"type", 1, NULL, 't'},
        {"out", 1, NULL, 'o'},    {"progress", 0, NULL, 'p'}, {"name", 1, NULL, 'n'},
        {"clamp", 1, NULL, 'c'},  {NULL, 0, NULL, 0}};
    int option;

    c->options.density = NAN;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
        OL_TRY(read_option(c, option, optarg, err));
    for (; optind < argc; optind++)
        OL_TRY(read_parent(c, argv[optind], err));
    if (!c->options.method || !c->out || c->n == 0)
        return ol_fail(err, OL_INVALID, "method, out and at least one adapter are needed");
    return OL_OK;
}

/* -- running --------------------------------------------------------------------------------- */

static ol_code write_file(const char *folder, const char *name, const ol_buf *bytes, ol_error *err)
{
    ol_buf path = {0};
    FILE *file;
    bool good;

    ol_buf_printf(&path, "%s/%s", folder, name);
    if (path.failed)
        return ol_fail_nomem(err, 0, "a path");
    file = fopen((char *)path.data, "wb");
    good = file && fwrite(bytes->data, 1, bytes->len, file) == bytes->len;
    if (file)
        good = fclose(file) == 0 && good;
    if (!good)
        ol_fail_errno(err, "could not write", (char *)path.data);
    ol_buf_free(&path);
    return good ? OL_OK : err->code;
}

static void tell(void *context, size_t done, size_t total)
{
    (void)context;
    fprintf(stderr, "PROGRESS %zu %zu\n", done, total);
}

static ol_code tell_parts(const ol_merge_parent *parents, int n, ol_error *err)
{
    double parts[OL_MERGE_MAX_PARENTS];

    OL_TRY(ol_merge_parts(parents, n, parts, err));
    for (int i = 0; i < n; i++)
        fprintf(stderr, "PART %d %.17g\n", i, parts[i]);
    return OL_OK;
}

static ol_code run(command *c, input *inputs, ol_arena *arena, ol_error *err)
{
    ol_merge_parent parents[OL_MERGE_MAX_PARENTS];
    ol_buf weights = {0}, config = {0};
    ol_code code;

    for (int i = 0; i < c->n; i++) {
        const char *name = i < c->n_names ? c->names[i] : c->paths[i];

        code =
            ol_adapter_read_path(c->paths[i], NULL, arena, &inputs[i].disk, &inputs[i].file, err);
        if (code != OL_OK)
            return ol_prefix(err, "%s", name);
        parents[i] = (ol_merge_parent){name, &inputs[i].file, c->weights[i]};
    }
    if (!c->typed)
        c->options.dtype = inputs[0].file.modules[0].a.dtype;
    c->options.progress = c->progress ? tell : NULL;
    code = ol_merge(&c->options, parents, c->n, &weights, &config, err);
    if (code == OL_OK && c->progress)
        code = tell_parts(parents, c->n, err);
    if (code == OL_OK && mkdir(c->out, 0700) != 0 && errno != EEXIST)
        code = ol_fail_errno(err, "could not create folder", c->out);
    if (code == OL_OK)
        code = write_file(c->out, "adapter_model.safetensors", &weights, err);
    if (code == OL_OK)
        code = write_file(c->out, "adapter_config.json", &config, err);
    ol_buf_free(&weights);
    ol_buf_free(&config);
    return code;
}

int main(int argc, char **argv)
{
    static input inputs[OL_MERGE_MAX_PARENTS];
    command c = {0};
    ol_arena *arena;
    ol_error err;
    ol_code code = read_command(argc, argv, &c, &err);

    if (code != OL_OK && argc < 2) {
        fputs(usage, stderr);
        return 2;
    }
    if (code == OL_OK) {
        arena = ol_arena_create();
        code = arena ? run(&c, inputs, arena, &err) : ol_fail_nomem(&err, 0, "an arena");
        for (int i = 0; i < c.n; i++)
            ol_adapter_disk_close(&inputs[i].disk);
        ol_arena_destroy(arena);
    }
    if (code == OL_OK)
        return 0;
    fprintf(stderr, "ERROR %d %s\n%s\n%s\n", (int)code, err.message, err.detail, err.hint);
    return 1;
}
