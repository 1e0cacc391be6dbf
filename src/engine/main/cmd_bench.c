/* cmd_bench.c: tokens per second: what is asked for, and what is told. bench_run.c measures. */
#include "engine/main/cli.h"

#include "engine/formats/weights.h"
#include "engine/main/bench.h"
#include "engine/main/random_adapter.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: openlora-engine bench --model PATH [OPTIONS]\n\n"
    "      --prompt N             tokens of each prompt (default: 128)\n"
    "      --generate N           tokens of each output (default: 64)\n"
    "      --parallel N           sequences at once (default: 1)\n"
    "      --adapters N           random adapters, spread over the sequences (default: 0)\n"
    "      --rank R               of each (default: 16)\n"
    "      --combine N            adapters in each request (default: 1)\n"
    "      --requests N           a load of so many requests, all waiting from the start\n"
    "      --write-adapters DIR   writes the random adapters to DIR/1, DIR/2, ..., as PEFT would\n"
    "      --repeats N            (default: 3); medians are told\n"
    "      --json\n" CLI_ENGINE_HELP;

enum {
    OPT_PROMPT = 1,
    OPT_GENERATE,
    OPT_PARALLEL,
    OPT_ADAPTERS,
    OPT_RANK,
    OPT_COMBINE,
    OPT_REQUESTS,
    OPT_WRITE_ADAPTERS,
    OPT_REPEATS,
    OPT_JSON,
};

static const struct option own_options[] = {
    {"prompt", required_argument, NULL, OPT_PROMPT},
    {"generate", required_argument, NULL, OPT_GENERATE},
    {"parallel", required_argument, NULL, OPT_PARALLEL},
    {"adapters", required_argument, NULL, OPT_ADAPTERS},
    {"rank", required_argument, NULL, OPT_RANK},
    {"combine", required_argument, NULL, OPT_COMBINE},
    {"requests", required_argument, NULL, OPT_REQUESTS},
    {"write-adapters", required_argument, NULL, OPT_WRITE_ADAPTERS},
    {"repeats", required_argument, NULL, OPT_REPEATS},
    {"json", no_argument, NULL, OPT_JSON},
    {0},
};

/* -- options ----------------------------------------------------------------------------- */

static bool take_option(int c, char *arg, void *context)
{
    bench *j = context;

    switch (c) {
    case OPT_PROMPT:
        return cli_int("prompt", arg, 1, 1 << 24, &j->prompt);
    case OPT_GENERATE:
        return cli_int("generate", arg, 1, 1 << 24, &j->generate);
    case OPT_PARALLEL:
        return cli_int("parallel", arg, 1, 4096, &j->parallel);
    case OPT_ADAPTERS:
        return cli_int("adapters", arg, 0, 1 << 16, &j->adapters);
    case OPT_RANK:
        return cli_int("rank", arg, 1, 512, &j->rank);
    case OPT_COMBINE:
        return cli_int("combine", arg, 1, OL_MAX_REQUEST_ADAPTERS, &j->combine);
    case OPT_REQUESTS:
        return cli_int("requests", arg, 1, 1 << 20, &j->requests);
    case OPT_WRITE_ADAPTERS:
        j->write_adapters = arg;
        return true;
    case OPT_REPEATS:
        return cli_int("repeats", arg, 1, BENCH_MAX_REPEATS, &j->repeats);
    case OPT_JSON:
        j->json = true;
        return true;
    default:
        return false;
    }
}

/* -1: go on, else the exit status. */
static int take_options(int argc, char **argv, bench *j)
{
    cli_options options = {help, own_options, take_option, j, &j->how};
    int status = cli_take_options(argc, argv, &options);

    if (status >= 0)
        return status;
    if (!j->how.model_path || optind < argc)
        return cli_usage(argv[0], "--model PATH is needed");
    if (j->adapters && j->combine > j->adapters)
        return cli_usage(argv[0], "--combine cannot exceed --adapters");
    return -1;
}

/* -- set-up --------------------------------------------------------------------------------- */

static ol_code put_adapter(bench *j, const ol_model_config *base, int i, ol_buf bytes[2],
                           ol_error *err)
{
    ol_adapter_bytes made;
    ol_adapter_facts facts;

    OL_TRY(random_adapter_make(base, j->rank, (uint64_t)i + 1, &bytes[0], &bytes[1], err));
    made =
        (ol_adapter_bytes){bytes[0].data, bytes[0].len, (const char *)bytes[1].data, bytes[1].len};
    if (j->write_adapters)
        OL_TRY(random_adapter_write(j->write_adapters, i + 1, &bytes[0], &bytes[1], err));
    ol_adapter_digest(bytes[0].data, bytes[0].len, (const char *)bytes[1].data, bytes[1].len,
                      &j->digests[i]);
    OL_TRY(ol_engine_adapter_put(j->engine, &j->digests[i], &made, &facts, err));
    if (!ol_engine_adapter_has(j->engine, &j->digests[0])) {
        ol_fail(err, OL_LIMIT, "the adapter cache holds %d of %d adapters", i, j->adapters);
        return ol_hint(err, "Raise --adapter-bytes.");
    }
    return OL_OK;
}

static ol_code put_adapters(bench *j, ol_error *err)
{
    ol_model_source *source;
    ol_buf bytes[2] = {{0}, {0}};
    ol_code code = OL_OK;

    j->digests = calloc((size_t)j->adapters + 1, sizeof(ol_digest));
    if (!j->digests)
        return ol_fail_nomem(err, (size_t)j->adapters * sizeof(ol_digest), "digests");
    OL_TRY(ol_model_source_open(j->how.model_path, &source, err));
    for (int i = 0; i < j->adapters && code == OL_OK; i++)
        code = put_adapter(j, ol_model_source_config(source), i, bytes, err);
    ol_model_source_close(source);
    ol_buf_free(&bytes[0]);
    ol_buf_free(&bytes[1]);
    return code;
}

static ol_code set_up(bench *j, ol_error *err)
{
    if (!j->how.max_seqs || j->how.max_seqs < j->parallel)
        j->how.max_seqs = j->parallel;
    if (j->parallel > 1000 || j->requests > 1000)
        j->how.max_queued = j->parallel > j->requests ? j->parallel : j->requests;
    OL_TRY(ol_engine_open(&j->how, &j->engine, err));
    ol_engine_info_get(j->engine, &j->info);
    j->tokens = malloc((size_t)j->prompt * sizeof(int32_t));
    if (!j->tokens)
        return ol_fail_nomem(err, (size_t)j->prompt * sizeof(int32_t), "a prompt");
    return put_adapters(j, err);
}

/* -- report ------------------------------------------------------------------------------ */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(const bench *j, const double *values)
{
    double sorted[BENCH_MAX_REPEATS];
    int n = j->repeats;

    memcpy(sorted, values, (size_t)n * sizeof(double));
    qsort(sorted, (size_t)n, sizeof(double), compare);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

static void report_json(const bench *j)
{
    const bench_figures *main = j->adapters ? &j->with : &j->without;
    json_t *o = json_pack(
        "{s:s,s:s,s:s,s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:I}", "model", j->info.model_name, "format",
        j->info.format, "device", j->info.device.name, "processor", j->info.device.description,
        "threads", j->info.device.threads, "prompt", j->prompt, "generate", j->generate, "parallel",
        j->parallel, "adapters", j->adapters, "rank", j->rank, "repeats", j->repeats,
        "memory_bytes", (json_int_t)j->info.device.memory_used);

    if (!o)
        return;
    json_object_set_new(o, "prefill_tokens_per_second", json_real(median(j, main->prefill)));
    json_object_set_new(o, "decode_tokens_per_second", json_real(median(j, main->decode)));
    if (j->requests)
        json_object_set_new(o, "load_tokens_per_second", json_real(median(j, main->load)));
    if (j->adapters) {
        json_object_set_new(o, "base_prefill_tokens_per_second",
                            json_real(median(j, j->without.prefill)));
        json_object_set_new(o, "base_decode_tokens_per_second",
                            json_real(median(j, j->without.decode)));
    }
    json_dumpf(o, stdout, JSON_REAL_PRECISION(8));
    putchar('\n');
    json_decref(o);
}

static void report_row(const bench *j, const char *what, const bench_figures *f)
{
    printf("%-28s %12.1f %12.1f", what, median(j, f->prefill), median(j, f->decode));
    if (j->requests)
        printf(" %12.1f", median(j, f->load));
    putchar('\n');
}

static void report_text(const bench *j)
{
    char what[64];

    printf("%s, %s, %s, %d threads (%s)\n", j->info.model_name, j->info.format, j->info.device.name,
           j->info.device.threads, j->info.device.description);
    printf("%d x (%d prompt + %d output) tokens, medians of %d\n\n", j->parallel, j->prompt,
           j->generate, j->repeats);
    printf("%-28s %12s %12s%s\n", "tokens per second", "prefill", "decode",
           j->requests ? "         load" : "");
    report_row(j, "no adapter", &j->without);
    if (!j->adapters)
        return;
    snprintf(what, sizeof(what), "%d adapters of rank %d", j->adapters, j->rank);
    report_row(j, what, &j->with);
}

int cmd_bench(int argc, char **argv)
{
    bench *j = calloc(1, sizeof(*j));
    ol_error err;
    int status;

    if (!j)
        return EXIT_FAILED;
    j->how = cli_engine_defaults();
    j->how.no_prefix_cache = true; /* repeats would find what they measure */
    j->prompt = 128;
    j->generate = 64;
    j->parallel = j->combine = 1;
    j->rank = 16;
    j->repeats = 3;
    status = take_options(argc, argv, j);
    if (status < 0) {
        status = set_up(j, &err) == OL_OK && bench_run(j, &err) == OL_OK ? EXIT_OK : cli_fail(&err);
        if (status == EXIT_OK)
            (j->json ? report_json : report_text)(j);
    }
    ol_engine_close(j->engine);
    free(j->digests);
    free(j->tokens);
    free(j);
    return status;
}
