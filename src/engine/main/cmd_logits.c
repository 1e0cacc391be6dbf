/* cmd_logits.c: the logits of every position of a sequence, for tests and comparisons. */
#include "engine/main/cli.h"

#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: openlora-engine logits --model PATH --tokens IDS --out FILE [OPTIONS]\n\n"
    "Writes raw little-endian float32, a row of the vocabulary's size for each token.\n\n"
    "      --tokens IDS           1,2,3\n"
    "      --out FILE             - is stdout\n"
    "      --adapter PATH[=W]     with weight W (default: 1); may be repeated\n" CLI_ENGINE_HELP;

enum { OPT_TOKENS = 1, OPT_OUT, OPT_ADAPTER };

static const struct option own_options[] = {
    {"tokens", required_argument, NULL, OPT_TOKENS},
    {"out", required_argument, NULL, OPT_OUT},
    {"adapter", required_argument, NULL, OPT_ADAPTER},
    {0},
};

typedef struct job {
    ol_engine_options engine;
    cli_adapters adapters;
    const char *out;
    int32_t *ids;
    int n;
} job;

static bool take_option(int c, char *arg, void *context)
{
    job *j = context;

    switch (c) {
    case OPT_TOKENS:
        free(j->ids);
        j->ids = NULL;
        return cli_ids("tokens", arg, &j->ids, &j->n);
    case OPT_OUT:
        j->out = arg;
        return true;
    case OPT_ADAPTER:
        return cli_adapter_arg(arg, &j->adapters);
    default:
        return false;
    }
}

/* -1: go on, else the exit status. */
static int take_options(int argc, char **argv, job *j)
{
    cli_options options = {help, own_options, take_option, j, &j->engine};
    int status = cli_take_options(argc, argv, &options);

    if (status >= 0)
        return status;
    if (optind < argc)
        return cli_usage(argv[0], "\"%s\" is not an option", argv[optind]);
    if (!j->engine.model_path || !j->ids || !j->out)
        return cli_usage(argv[0], "--model, --tokens and --out are needed");
    return -1;
}

static ol_code write_out(const char *path, const float *logits, size_t n, ol_error *err)
{
    FILE *f = strcmp(path, "-") == 0 ? stdout : fopen(path, "wb");

    if (!f)
        return ol_fail_errno(err, "could not write", path);
    fwrite(logits, sizeof(float), n, f);
    if (ferror(f) || (f == stdout ? fflush(f) : fclose(f)) != 0)
        return ol_fail_errno(err, "could not write", path);
    return OL_OK;
}

static ol_code run(job *j, ol_engine *engine, ol_error *err)
{
    ol_engine_info info;
    float *logits;
    size_t n;
    ol_code code;

    OL_TRY(cli_load_adapters(engine, &j->adapters, err));
    ol_engine_info_get(engine, &info);
    n = (size_t)j->n * (size_t)info.vocab;
    logits = malloc(n * sizeof(float));
    if (!logits)
        return ol_fail_nomem(err, n * sizeof(float), "logits");
    code = ol_engine_logits(engine, &(ol_whole_text){j->ids, j->n, j->adapters.n, j->adapters.uses},
                            logits, err);
    if (code == OL_OK)
        code = write_out(j->out, logits, n, err);
    free(logits);
    return code;
}

int cmd_logits(int argc, char **argv)
{
    job j = {.engine = cli_engine_defaults()};
    ol_engine *engine = NULL;
    ol_error err;
    int status = take_options(argc, argv, &j);

    if (status < 0)
        status = ol_engine_open(&j.engine, &engine, &err) == OL_OK && run(&j, engine, &err) == OL_OK
                     ? EXIT_OK
                     : cli_fail(&err);
    ol_engine_close(engine);
    free(j.ids);
    return status;
}
