/* cli.c: see cli.h. */
#include "engine/main/cli.h"

#include "engine/formats/adapter_file.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* -- errors ------------------------------------------------------------------------- */

int cli_fail(const ol_error *err)
{
    fflush(stdout);
    fprintf(stderr, "error: %s\n", err->message);
    if (err->detail[0])
        fprintf(stderr, "detail: %s\n", err->detail);
    if (err->hint[0])
        fprintf(stderr, "hint: %s\n", err->hint);
    return EXIT_FAILED;
}

int cli_usage(const char *command, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "openlora-engine %s: ", command);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\nSee \"openlora-engine %s --help\".\n", command);
    return EXIT_USAGE;
}

/* -- values ------------------------------------------------------------------------- */

static bool bad_value(const char *option, const char *text)
{
    fprintf(stderr, "error: --%s cannot be \"%s\"\n", option, text);
    return false;
}

bool cli_int(const char *option, const char *text, long least, long most, int *value)
{
    char *end;
    long v;

    errno = 0;
    v = strtol(text, &end, 10);
    if (end == text || *end || errno || v < least || v > most)
        return bad_value(option, text);
    *value = (int)v;
    return true;
}

bool cli_u64(const char *option, const char *text, uint64_t *value)
{
    char *end;

    errno = 0;
    *value = strtoull(text, &end, 10);
    return end != text && !*end && !errno && text[0] != '-' ? true : bad_value(option, text);
}

bool cli_size(const char *option, const char *text, size_t *value)
{
    uint64_t v;

    if (!cli_u64(option, text, &v))
        return false;
    *value = (size_t)v;
    return true;
}

bool cli_float(const char *option, const char *text, float *value)
{
    char *end;

    *value = strtof(text, &end);
    return end != text && !*end && isfinite(*value) ? true : bad_value(option, text);
}

bool cli_ids(const char *option, const char *text, int32_t **ids, int *n)
{
    size_t most = strlen(text) / 2 + 1;
    int32_t *out = calloc(most, sizeof(int32_t));
    const char *at = text;

    *n = 0;
    while (out) {
        char *end;
        long v = strtol(at, &end, 10);

        if (end == at || v < 0 || v > INT32_MAX)
            break;
        out[(*n)++] = (int32_t)v;
        at = end + strspn(end, ", ");
        if (!*at) {
            *ids = out;
            return true;
        }
    }
    free(out);
    return bad_value(option, text);
}

ol_code cli_read_stdin(char **text, size_t *len, ol_error *err)
{
    ol_buf all = {0};
    char piece[4096];
    size_t n;

    while ((n = fread(piece, 1, sizeof(piece), stdin)) > 0)
        ol_buf_put(&all, piece, n);
    ol_buf_put_u8(&all, 0);
    if (all.failed) {
        n = all.len;
        ol_buf_free(&all);
        return ol_fail_nomem(err, n, "standard input");
    }
    *text = (char *)all.data;
    *len = all.len - 1;
    return OL_OK;
}

/* -- options of an engine -------------------------------------------------------------- */

enum {
    OPT_HELP = 1000, /* above the commands' own, and what getopt returns besides */
    OPT_MODEL,       /* the first of the engine's */
    OPT_DEVICE,
    OPT_DEVICE_DIR,
    OPT_ISA,
    OPT_THREADS,
    OPT_QUANTIZATION,
    OPT_MEMORY_LIMIT,
    OPT_KV_BYTES,
    OPT_KV_DTYPE,
    OPT_ADAPTER_BYTES,
    OPT_ADAPTER_COPY_BYTES,
    OPT_ADAPTER_DTYPE,
    OPT_CACHE_BYTES,
    OPT_CONTEXT,
    OPT_MAX_SEQS,
    OPT_STEP_TOKENS,
    OPT_PAGE_TOKENS,
    OPT_MAX_QUEUED,
    OPT_STEP_MS,
    OPT_NO_PREFIX_CACHE,
};

static const struct option engine_options[] = {
    {"model", required_argument, NULL, OPT_MODEL},
    {"device", required_argument, NULL, OPT_DEVICE},
    {"device-dir", required_argument, NULL, OPT_DEVICE_DIR},
    {"isa", required_argument, NULL, OPT_ISA},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"quantization", required_argument, NULL, OPT_QUANTIZATION},
    {"memory-limit", required_argument, NULL, OPT_MEMORY_LIMIT},
    {"kv-bytes", required_argument, NULL, OPT_KV_BYTES},
    {"kv-dtype", required_argument, NULL, OPT_KV_DTYPE},
    {"adapter-bytes", required_argument, NULL, OPT_ADAPTER_BYTES},
    {"adapter-copy-bytes", required_argument, NULL, OPT_ADAPTER_COPY_BYTES},
    {"adapter-dtype", required_argument, NULL, OPT_ADAPTER_DTYPE},
    {"cache-bytes", required_argument, NULL, OPT_CACHE_BYTES},
    {"context", required_argument, NULL, OPT_CONTEXT},
    {"max-seqs", required_argument, NULL, OPT_MAX_SEQS},
    {"step-tokens", required_argument, NULL, OPT_STEP_TOKENS},
    {"page-tokens", required_argument, NULL, OPT_PAGE_TOKENS},
    {"max-queued", required_argument, NULL, OPT_MAX_QUEUED},
    {"step-ms", required_argument, NULL, OPT_STEP_MS},
    {"no-prefix-cache", no_argument, NULL, OPT_NO_PREFIX_CACHE},
};

#define ENGINE_OPTIONS (sizeof(engine_options) / sizeof(engine_options[0]))

ol_engine_options cli_engine_defaults(void)
{
    return (ol_engine_options){.kv_dtype = -1};
}

/* The index of `text` among names, which end with NULL; -1 if it is none. */
static int choice_of(const char *option, const char *text, const char *const *names)
{
    for (int i = 0; names[i]; i++)
        if (strcmp(names[i], text) == 0)
            return i;
    bad_value(option, text);
    return -1;
}

static bool quantization_arg(const char *arg, ol_quantization *q)
{
    static const char *const names[] = {"auto", "int8", "int4", "fp8", NULL};
    static const ol_quantization kinds[] = {OL_QUANT_AS_IS, OL_QUANT_INT8, OL_QUANT_INT4,
                                            OL_QUANT_FP8};
    int at = choice_of("quantization", arg, names);

    *q = at >= 0 ? kinds[at] : OL_QUANT_AS_IS;
    return at >= 0;
}

static bool kv_dtype_arg(const char *arg, int *dtype)
{
    static const char *const names[] = {"auto", "f32", "f16", "bf16", "fp8", NULL};
    static const int types[] = {-1, OL_F32, OL_F16, OL_BF16, OL_F8E4M3};
    int at = choice_of("kv-dtype", arg, names);

    *dtype = at >= 0 ? types[at] : -1;
    return at >= 0;
}

static bool adapter_dtype_arg(const char *arg, ol_quantization *q)
{
    static const char *const names[] = {"auto", "int8", NULL};
    int at = choice_of("adapter-dtype", arg, names);

    *q = at == 1 ? OL_QUANT_INT8 : OL_QUANT_AS_IS;
    return at >= 0;
}

static bool engine_option(int c, const char *arg, ol_engine_options *o)
{
    const char *name = engine_options[c - OPT_MODEL].name;
    const char **texts[] = {&o->model_path, &o->device, &o->device_dir, &o->isa};

    switch (c) {
    case OPT_MODEL:
    case OPT_DEVICE:
    case OPT_DEVICE_DIR:
    case OPT_ISA:
        *texts[c - OPT_MODEL] = arg;
        return true;
    case OPT_THREADS:
        return cli_int(name, arg, 0, 1024, &o->threads);
    case OPT_QUANTIZATION:
        return quantization_arg(arg, &o->quantization);
    case OPT_MEMORY_LIMIT:
        return cli_size(name, arg, &o->memory_limit);
    case OPT_KV_BYTES:
        return cli_size(name, arg, &o->kv_bytes);
    case OPT_KV_DTYPE:
        return kv_dtype_arg(arg, &o->kv_dtype);
    case OPT_ADAPTER_BYTES:
        return cli_size(name, arg, &o->adapter_bytes);
    case OPT_ADAPTER_COPY_BYTES:
        if (!cli_size(name, arg, &o->copy_bytes))
            return false;
        o->copy_bytes = o->copy_bytes ? o->copy_bytes : OL_NO_COPIES;
        return true;
    case OPT_ADAPTER_DTYPE:
        return adapter_dtype_arg(arg, &o->adapters);
    case OPT_CACHE_BYTES:
        return cli_size(name, arg, &o->cache_bytes);
    case OPT_CONTEXT:
        return cli_int(name, arg, 0, INT32_MAX, &o->context);
    case OPT_MAX_SEQS:
        return cli_int(name, arg, 0, INT32_MAX, &o->max_seqs);
    case OPT_STEP_TOKENS:
        return cli_int(name, arg, 0, INT32_MAX, &o->step_tokens);
    case OPT_PAGE_TOKENS:
        return cli_int(name, arg, 0, INT32_MAX, &o->page_tokens);
    case OPT_MAX_QUEUED:
        return cli_int(name, arg, 0, INT32_MAX, &o->max_queued);
    case OPT_STEP_MS:
        return cli_int(name, arg, 0, INT32_MAX, &o->step_ms);
    case OPT_NO_PREFIX_CACHE:
        o->no_prefix_cache = true;
        return true;
    default:
        return false;
    }
}

/* -- a command's options ------------------------------------------------------------------ */

static void join_options(const cli_options *command, struct option *out)
{
    const struct option *own = command->own;

    *out++ = (struct option){"help", no_argument, NULL, OPT_HELP};
    for (; own->name; own++) {
        assert(own->val >= 1 && own->val <= CLI_MAX_OWN && own - command->own < CLI_MAX_OWN);
        *out++ = *own;
    }
    for (size_t i = 0; command->engine && i < ENGINE_OPTIONS; i++)
        *out++ = engine_options[i];
    *out = (struct option){0};
}

int cli_take_options(int argc, char **argv, const cli_options *command)
{
    struct option options[1 + CLI_MAX_OWN + ENGINE_OPTIONS + 1];
    int c;

    join_options(command, options);
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == OPT_HELP) {
            fputs(command->help, stdout);
            return EXIT_OK;
        }
        if (c == '?' || !(c >= OPT_MODEL ? engine_option(c, optarg, command->engine)
                                         : command->take(c, optarg, command->job)))
            return EXIT_USAGE;
    }
    return -1;
}

/* -- adapters of a request ---------------------------------------------------------------- */

bool cli_adapter_arg(char *arg, cli_adapters *adapters)
{
    char *equals = strrchr(arg, '=');
    float weight = 1;
    char *end;

    if (adapters->n == OL_MAX_REQUEST_ADAPTERS) {
        fprintf(stderr, "error: at most %d adapters can be combined\n", OL_MAX_REQUEST_ADAPTERS);
        return false;
    }
    if (equals && equals[1]) { /* a path may hold '=', too */
        weight = strtof(equals + 1, &end);
        if (*end)
            weight = 1;
        else
            *equals = '\0';
    }
    adapters->paths[adapters->n] = arg;
    adapters->uses[adapters->n++].weight = weight;
    return true;
}

static ol_code load_adapter(ol_engine *engine, const char *path, ol_digest *digest, ol_error *err)
{
    ol_adapter_bytes bytes;
    ol_adapter_facts facts;
    ol_adapter_disk disk;
    ol_code code;

    OL_TRY(ol_adapter_disk_open(path, &disk, err));
    bytes = (ol_adapter_bytes){disk.weights.data, disk.weights.len, (const char *)disk.config.data,
                               disk.config.len};
    ol_adapter_digest(disk.weights.data, disk.weights.len, (const char *)disk.config.data,
                      disk.config.len, digest);
    code = ol_engine_adapter_put(engine, digest, &bytes, &facts, err);
    ol_adapter_disk_close(&disk);
    return code == OL_OK ? OL_OK : ol_prefix(err, "%s", path);
}

ol_code cli_load_adapters(ol_engine *engine, cli_adapters *adapters, ol_error *err)
{
    for (int i = 0; i < adapters->n; i++)
        OL_TRY(load_adapter(engine, adapters->paths[i], &adapters->uses[i].digest, err));
    for (int i = 0; i < adapters->n; i++) /* a later one may have pushed an earlier one out */
        if (!ol_engine_adapter_has(engine, &adapters->uses[i].digest)) {
            ol_fail(err, OL_LIMIT, "the adapters do not fit the adapter cache together");
            return ol_hint(err, "Raise --adapter-bytes.");
        }
    return OL_OK;
}
