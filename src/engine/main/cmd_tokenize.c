/* cmd_tokenize.c: lines of text to token ids. */
#include "engine/main/cli.h"

#include "engine/vocab.h"

#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: openlora-engine tokenize --model PATH [OPTIONS] < TEXT\n\n"
    "Reads lines, writes the token ids of each on a line of its own. PATH is a model folder,\n"
    "a GGUF file (one with a vocabulary alone will do), tokenizer.json, a SentencePiece\n"
    "model or tiktoken ranks.\n\n"
    "      --no-bos          do not put the bos token first even if the model expects it\n"
    "      --parse-special   special tokens written out in the text count as such\n"
    "      --whole           all of the input is one text\n"
    "      --decode          the other way: lines of ids to text\n";

enum { OPT_MODEL = 1, OPT_NO_BOS, OPT_PARSE_SPECIAL, OPT_WHOLE, OPT_DECODE };

static const struct option options[] = {
    {"model", required_argument, NULL, OPT_MODEL},
    {"no-bos", no_argument, NULL, OPT_NO_BOS},
    {"parse-special", no_argument, NULL, OPT_PARSE_SPECIAL},
    {"whole", no_argument, NULL, OPT_WHOLE},
    {"decode", no_argument, NULL, OPT_DECODE},
    {0},
};

typedef struct job {
    const char *path;
    ol_tokenizer *tok;
    bool no_bos, parse_special, whole, decode;
    ol_ids ids;
    ol_buf text;
} job;

static bool take_option(int c, char *arg, void *context)
{
    job *j = context;

    switch (c) {
    case OPT_MODEL:
        j->path = arg;
        return true;
    case OPT_NO_BOS:
        j->no_bos = true;
        return true;
    case OPT_PARSE_SPECIAL:
        j->parse_special = true;
        return true;
    case OPT_WHOLE:
        j->whole = true;
        return true;
    case OPT_DECODE:
        j->decode = true;
        return true;
    default:
        return false;
    }
}

/* -1: go on, else the exit status. */
static int take_options(int argc, char **argv, job *j)
{
    cli_options all = {help, options, take_option, j, NULL};
    int status = cli_take_options(argc, argv, &all);

    if (status >= 0)
        return status;
    if (!j->path || optind < argc)
        return cli_usage(argv[0], "--model PATH is needed, and the text comes from stdin");
    return -1;
}

static ol_code encode_text(job *j, const char *text, size_t len, ol_error *err)
{
    unsigned flags = j->parse_special ? OL_TOK_PARSE_SPECIAL : 0;

    if (!j->no_bos && ol_tokenizer_adds_bos(j->tok))
        flags |= OL_TOK_ADD_BOS;
    j->ids.n = 0;
    OL_TRY(ol_tokenize(j->tok, text, len, flags, &j->ids, err));
    for (size_t i = 0; i < j->ids.n; i++)
        printf(i ? " %d" : "%d", j->ids.ids[i]);
    putchar('\n');
    return OL_OK;
}

static ol_code decode_line(job *j, const char *line, ol_error *err)
{
    int32_t *ids = NULL;
    int n = 0;
    ol_code code;

    if (*line && !cli_ids("decode", line, &ids, &n))
        return ol_fail(err, OL_INVALID, "a line is not a list of token ids");
    ol_buf_reset(&j->text);
    code = ol_detokenize(j->tok, ids, (size_t)n, 0, &j->text, err);
    free(ids);
    OL_TRY(code);
    if (j->text.len)
        fwrite(j->text.data, 1, j->text.len, stdout);
    putchar('\n');
    return OL_OK;
}

static ol_code one_text(job *j, char *text, size_t len, ol_error *err)
{
    return j->decode ? decode_line(j, text, err) : encode_text(j, text, len, err);
}

static ol_code each_line(job *j, ol_error *err)
{
    char *text, *at, *end;
    size_t len;
    ol_code code = OL_OK;

    OL_TRY(cli_read_stdin(&text, &len, err));
    for (at = text; code == OL_OK && (at < text + len || j->whole); at = end + 1) {
        end = j->whole ? NULL : memchr(at, '\n', len - (size_t)(at - text));
        if (!end)
            end = text + len;
        *end = '\0';
        code = one_text(j, at, (size_t)(end - at), err);
        if (j->whole)
            break;
    }
    free(text);
    return code;
}

int cmd_tokenize(int argc, char **argv)
{
    job j = {0};
    ol_error err;
    int status = take_options(argc, argv, &j);

    if (status < 0)
        status = ol_vocab_of_path(j.path, &j.tok, &err) == OL_OK && each_line(&j, &err) == OL_OK
                     ? EXIT_OK
                     : cli_fail(&err);
    ol_tokenizer_free(j.tok);
    ol_ids_free(&j.ids);
    ol_buf_free(&j.text);
    return status;
}
