/* cmd_generate.c: one request, streamed to standard output. */
#include "engine/main/cli.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: openlora-engine generate --model PATH (--prompt TEXT | --tokens IDS) [OPTIONS]\n\n"
    "Writes the output to stdout as it comes, figures to stderr.\n\n"
    "      --prompt TEXT          - reads it from stdin\n"
    "      --tokens IDS           the prompt as token ids (1,2,3); output is ids, too\n"
    "      --parse-special        special tokens written out in the prompt count as such\n"
    "      --adapter PATH[=W]     with weight W (default: 1); may be repeated\n"
    "      --max-tokens N         (default: 128)\n"
    "      --temperature T        0, the default, is greedy\n"
    "      --top-k K  --top-p P  --min-p P  --seed N\n"
    "      --repetition-penalty X  --presence-penalty X  --frequency-penalty X\n"
    "      --stop TEXT            may be repeated\n"
    "      --ignore-eos\n"
    "      --logprobs N           tell the log-probabilities of N alternatives, too\n"
    "      --json                 one JSON object instead of a stream\n" CLI_ENGINE_HELP;

enum {
    OPT_PROMPT = 1,
    OPT_TOKENS,
    OPT_PARSE_SPECIAL,
    OPT_ADAPTER,
    OPT_MAX_TOKENS,
    OPT_TEMPERATURE,
    OPT_TOP_K,
    OPT_TOP_P,
    OPT_MIN_P,
    OPT_SEED,
    OPT_REPETITION,
    OPT_PRESENCE,
    OPT_FREQUENCY,
    OPT_STOP,
    OPT_IGNORE_EOS,
    OPT_LOGPROBS,
    OPT_JSON,
};

static const struct option own_options[] = {
    {"prompt", required_argument, NULL, OPT_PROMPT},
    {"tokens", required_argument, NULL, OPT_TOKENS},
    {"parse-special", no_argument, NULL, OPT_PARSE_SPECIAL},
    {"adapter", required_argument, NULL, OPT_ADAPTER},
    {"max-tokens", required_argument, NULL, OPT_MAX_TOKENS},
    {"temperature", required_argument, NULL, OPT_TEMPERATURE},
    {"top-k", required_argument, NULL, OPT_TOP_K},
    {"top-p", required_argument, NULL, OPT_TOP_P},
    {"min-p", required_argument, NULL, OPT_MIN_P},
    {"seed", required_argument, NULL, OPT_SEED},
    {"repetition-penalty", required_argument, NULL, OPT_REPETITION},
    {"presence-penalty", required_argument, NULL, OPT_PRESENCE},
    {"frequency-penalty", required_argument, NULL, OPT_FREQUENCY},
    {"stop", required_argument, NULL, OPT_STOP},
    {"ignore-eos", no_argument, NULL, OPT_IGNORE_EOS},
    {"logprobs", required_argument, NULL, OPT_LOGPROBS},
    {"json", no_argument, NULL, OPT_JSON},
    {0},
};

typedef struct job {
    ol_engine_options engine;
    cli_adapters adapters;
    ol_request request;
    ol_text stops[OL_MAX_STOPS];
    int32_t *ids; /* --tokens */
    char *input;  /* a prompt from stdin */
    bool json;
    json_t *tokens, *logprobs; /* --json */
    ol_buf text;
    bool first; /* nothing printed yet */
} job;

/* -- options ---------------------------------------------------------------------------- */

static bool add_stop(job *j, const char *text)
{
    if (j->request.sampling.n_stops == OL_MAX_STOPS) {
        fprintf(stderr, "error: at most %d stop strings\n", OL_MAX_STOPS);
        return false;
    }
    j->stops[j->request.sampling.n_stops++] = (ol_text){text, strlen(text)};
    j->request.sampling.stops = j->stops;
    return true;
}

static bool sampling_option(int c, const char *arg, ol_sampling *s)
{
    switch (c) {
    case OPT_MAX_TOKENS:
        return cli_int("max-tokens", arg, 0, INT32_MAX, &s->max_tokens);
    case OPT_TEMPERATURE:
        return cli_float("temperature", arg, &s->temperature);
    case OPT_TOP_K:
        return cli_int("top-k", arg, 0, INT32_MAX, &s->top_k);
    case OPT_TOP_P:
        return cli_float("top-p", arg, &s->top_p);
    case OPT_MIN_P:
        return cli_float("min-p", arg, &s->min_p);
    case OPT_SEED:
        return cli_u64("seed", arg, &s->seed);
    case OPT_REPETITION:
        return cli_float("repetition-penalty", arg, &s->repetition_penalty);
    case OPT_PRESENCE:
        return cli_float("presence-penalty", arg, &s->presence_penalty);
    case OPT_FREQUENCY:
        return cli_float("frequency-penalty", arg, &s->frequency_penalty);
    case OPT_LOGPROBS:
        return cli_int("logprobs", arg, 0, OL_MAX_LOGPROBS, &s->logprobs);
    default:
        s->ignore_eos = true;
        return true;
    }
}

static bool take_option(int c, char *arg, void *context)
{
    job *j = context;

    switch (c) {
    case OPT_PROMPT:
        j->request.prompt = (ol_text){arg, strlen(arg)};
        return true;
    case OPT_TOKENS:
        if (!cli_ids("tokens", arg, &j->ids, &j->request.n_prompt_tokens))
            return false;
        j->request.prompt_tokens = j->ids;
        return true;
    case OPT_PARSE_SPECIAL:
        j->request.parse_special = true;
        return true;
    case OPT_ADAPTER:
        return cli_adapter_arg(arg, &j->adapters);
    case OPT_STOP:
        return add_stop(j, arg);
    case OPT_JSON:
        j->json = true;
        return true;
    default:
        return sampling_option(c, arg, &j->request.sampling);
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
    if (!j->engine.model_path)
        return cli_usage(argv[0], "--model is missing");
    if (!j->request.prompt.data == !j->request.prompt_tokens)
        return cli_usage(argv[0], "give --prompt or --tokens");
    return -1;
}

static ol_code read_prompt(job *j, ol_error *err)
{
    ol_text *prompt = &j->request.prompt;

    if (!prompt->data || strcmp(prompt->data, "-") != 0)
        return OL_OK;
    OL_TRY(cli_read_stdin(&j->input, &prompt->len, err));
    prompt->data = j->input;
    return OL_OK;
}

/* -- output ------------------------------------------------------------------------------ */

static json_t *json_of_logprobs(const ol_event *e)
{
    json_t *alternatives = json_array();

    for (int i = 0; i < e->n_alternatives; i++)
        json_array_append_new(alternatives, json_pack("[i,f]", (int)e->alternatives[i].token,
                                                      (double)e->alternatives[i].logprob));
    return json_pack("{s:i,s:f,s:o}", "token", (int)e->token, "logprob", (double)e->logprob,
                     "alternatives", alternatives);
}

static void print_text(ol_text text)
{
    if (text.len)
        fwrite(text.data, 1, text.len, stdout);
}

static void show_token(job *j, const ol_event *e)
{
    if (j->json) {
        json_array_append_new(j->tokens, json_integer(e->token));
        ol_buf_put(&j->text, e->text.data, e->text.len);
        if (j->request.sampling.logprobs >= 0)
            json_array_append_new(j->logprobs, json_of_logprobs(e));
        return;
    }
    if (j->request.prompt_tokens)
        printf(j->first ? "%d" : ",%d", e->token);
    else
        print_text(e->text);
    j->first = false;
    fflush(stdout);
    if (j->request.sampling.logprobs < 0)
        return;
    fprintf(stderr, "%d: token %d, logprob %.6f;", e->index, e->token, (double)e->logprob);
    for (int i = 0; i < e->n_alternatives; i++)
        fprintf(stderr, " %d %.6f", e->alternatives[i].token, (double)e->alternatives[i].logprob);
    fputc('\n', stderr);
}

static double per_second(int n, uint64_t us)
{
    return us ? n * 1e6 / (double)us : 0;
}

static void show_stats(const job *j, const ol_event *e)
{
    fprintf(stderr,
            "%s; prompt %d tokens in %.1f ms (%.1f/s); output %d tokens in %.1f ms (%.1f/s)",
            ol_finish_name(e->finish), e->prompt_tokens, (double)e->prefill_us / 1e3,
            per_second(e->prompt_tokens, e->prefill_us), e->completion_tokens,
            (double)e->decode_us / 1e3, per_second(e->completion_tokens - 1, e->decode_us));
    for (int i = 0; i < e->n_shares; i++)
        fprintf(stderr, "; %s %.4f", j->adapters.paths[i], e->shares[i]);
    fputc('\n', stderr);
}

static void show_json(job *j, const ol_event *e)
{
    json_t *shares = json_array(), *out;

    for (int i = 0; i < e->n_shares; i++)
        json_array_append_new(shares, json_real(e->shares[i]));
    out = json_pack("{s:s%,s:O,s:s,s:i,s:i,s:o,s:I,s:I,s:I}", "text",
                    j->text.data ? (const char *)j->text.data : "", j->text.len, "tokens",
                    j->tokens, "finish", ol_finish_name(e->finish), "prompt_tokens",
                    e->prompt_tokens, "completion_tokens", e->completion_tokens, "shares", shares,
                    "queue_us", (json_int_t)e->queue_us, "prefill_us", (json_int_t)e->prefill_us,
                    "decode_us", (json_int_t)e->decode_us);
    if (out && j->request.sampling.logprobs >= 0)
        json_object_set(out, "logprobs", j->logprobs);
    if (out)
        json_dumpf(out, stdout, JSON_ENSURE_ASCII);
    fputc('\n', stdout);
    json_decref(out);
}

static void show_done(job *j, const ol_event *e)
{
    if (j->json) {
        ol_buf_put(&j->text, e->text.data, e->text.len);
        show_json(j, e);
        return;
    }
    if (!j->request.prompt_tokens)
        print_text(e->text);
    fputc('\n', stdout);
    fflush(stdout);
    show_stats(j, e);
}

/* -- the request ------------------------------------------------------------------------------ */

static ol_code run(job *j, ol_engine *engine, ol_error *err)
{
    ol_event e;

    OL_TRY(cli_load_adapters(engine, &j->adapters, err));
    j->request.n_adapters = j->adapters.n;
    j->request.adapters = j->adapters.uses;
    OL_TRY(ol_engine_submit(engine, &j->request, err));
    for (;;) {
        OL_TRY(ol_engine_step(engine, err));
        while (ol_engine_poll(engine, &e)) {
            if (e.kind == OL_EVENT_FAILED) {
                *err = e.error;
                return err->code;
            }
            if (e.kind == OL_EVENT_TOKEN)
                show_token(j, &e);
            if (e.kind == OL_EVENT_DONE) {
                show_done(j, &e);
                return OL_OK;
            }
        }
    }
}

int cmd_generate(int argc, char **argv)
{
    job j = {.engine = cli_engine_defaults(), .first = true};
    ol_engine *engine = NULL;
    ol_error err;
    int status;

    j.request.sampling = ol_sampling_default();
    j.request.sampling.max_tokens = 128;
    status = take_options(argc, argv, &j);
    if (status < 0) {
        j.tokens = json_array();
        j.logprobs = json_array();
        status = read_prompt(&j, &err) == OL_OK &&
                         ol_engine_open(&j.engine, &engine, &err) == OL_OK &&
                         run(&j, engine, &err) == OL_OK
                     ? EXIT_OK
                     : cli_fail(&err);
    }
    ol_engine_close(engine);
    json_decref(j.tokens);
    json_decref(j.logprobs);
    ol_buf_free(&j.text);
    free(j.ids);
    free(j.input);
    return status;
}
