/* main.c: the program openlora-engine. It chooses a command; each has a file of its own. */
#include "engine/main/cli.h"

#include <string.h>

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *what;
} commands[] = {
    {"inspect", cmd_inspect, "what a model, tokenizer or adapter is, and what of it is refused"},
    {"tokenize", cmd_tokenize, "lines of text to token ids"},
    {"generate", cmd_generate, "text from a prompt, with any adapters"},
    {"logits", cmd_logits, "the logits of a sequence of tokens, into a file"},
    {"bench", cmd_bench, "tokens per second"},
    {"serve", cmd_serve, "what the extension's worker starts"},
};

static void print_help(FILE *out)
{
    fputs("openlora-engine serves one language model with many LoRA adapters.\n\n"
          "usage: openlora-engine COMMAND [OPTIONS]\n\n",
          out);
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].what);
    fputs("\nEach command explains itself with --help. Exit status: 0 done, 1 failed, 2 called "
          "wrongly.\n",
          out);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return EXIT_OK;
    }
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        if (strcmp(commands[i].name, argv[1]) == 0)
            return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "error: there is no command \"%s\"\n", argv[1]);
    print_help(stderr);
    return EXIT_USAGE;
}
