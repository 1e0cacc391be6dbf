/* cli.h: what the commands of openlora-engine share. */
#ifndef OL_MAIN_CLI_H
#define OL_MAIN_CLI_H

#include "base/buf.h"
#include "engine/engine.h"

#include <getopt.h>
#include <stdio.h>

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

/* One command per file; argv[0] is the command's name. */
int cmd_inspect(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_logits(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_serve(int argc, char **argv);

/* Prints message, detail and hint on stderr; returns EXIT_FAILED. */
int cli_fail(const ol_error *err);
/* One line on stderr and where to find help; returns EXIT_USAGE. */
int cli_usage(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Values of options. Each prints what is wrong with it and returns false. */
bool cli_int(const char *option, const char *text, long least, long most, int *value);
bool cli_size(const char *option, const char *text, size_t *value);
bool cli_u64(const char *option, const char *text, uint64_t *value);
bool cli_float(const char *option, const char *text, float *value);
/* "1,2,3" (or with spaces), malloc'ed. */
bool cli_ids(const char *option, const char *text, int32_t **ids, int *n);

/* All of standard input, NUL-terminated; the NUL does not count in *len. */
ol_code cli_read_stdin(char **text, size_t *len, ol_error *err);

/* -- options of an engine, the same for every command ------------------------------- */
#define CLI_ENGINE_HELP                                                                            \
    "      --model PATH           model folder or GGUF file\n"                                     \
    "      --device NAME          auto, cpu, cuda, cuda:N\n"                                       \
    "      --device-dir DIR       where openlora_*.so lie (default: beside this program)\n"        \
    "      --isa NAME             CPU: portable, avx2, avx512, ...: the best to use at most\n"     \
    "      --threads N            CPU threads (default: one per core)\n"                           \
    "      --quantization Q       auto (as the file has it), int8, int4, fp8 (GPU)\n"              \
    "      --memory-limit BYTES   of the device\n"                                                 \
    "      --kv-bytes BYTES       KV cache (default: 512 MiB at most)\n"                           \
    "      --kv-dtype TYPE        auto, f32, f16, bf16, fp8 (GPU: bf16, fp8)\n"                    \
    "      --adapter-bytes BYTES  adapter cache (default: 1 GiB)\n"                                \
    "      --adapter-copy-bytes BYTES  adapters in the host's memory besides (default: 4 GiB "     \
    "with\n"                                                                                       \
    "                             a GPU, else none; 0: none)\n"                                    \
    "      --adapter-dtype TYPE   auto (as they are given), int8\n"                                \
    "      --cache-bytes BYTES    one pool for both, which limit their parts (default: none)\n"    \
    "      --context N            tokens per request at most\n"                                    \
    "      --max-seqs N           running sequences (default: 64)\n"                               \
    "      --step-tokens N        token rows per step (default: 512)\n"                            \
    "      --page-tokens N        tokens per KV page (default: 16)\n"                              \
    "      --max-queued N         waiting requests (default: 1000)\n"                              \
    "      --step-ms N            of a step with prompts, while others generate (200)\n"           \
    "      --no-prefix-cache      compute every prompt anew\n"

ol_engine_options cli_engine_defaults(void);

/* -- a command's options ------------------------------------------------------------- */
#define CLI_MAX_OWN 32

typedef struct cli_options {
    const char *help;         /* what --help prints */
    const struct option *own; /* with values from 1 to CLI_MAX_OWN; ends with an empty one */
    bool (*take)(int option, char *arg, void *job); /* one of them; prints what is wrong with it */
    void *job;
    ol_engine_options *engine; /* takes the engine's besides; NULL: the command has none of these */
} cli_options;

/* Goes through them all; what is no option begins at argv[optind] then. -1: go on, else the exit
 * status. */
int cli_take_options(int argc, char **argv, const cli_options *options);

/* -- adapters of a request ------------------------------------------------------------ */
typedef struct cli_adapters {
    int n;
    const char *paths[OL_MAX_REQUEST_ADAPTERS];
    ol_adapter_use uses[OL_MAX_REQUEST_ADAPTERS]; /* digests after loading */
} cli_adapters;

/* PATH or PATH=WEIGHT; changes `arg`. */
bool cli_adapter_arg(char *arg, cli_adapters *adapters);
/* Reads them all into the engine. */
ol_code cli_load_adapters(ol_engine *engine, cli_adapters *adapters, ol_error *err);

#endif
