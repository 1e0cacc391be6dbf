/* cmd_inspect.c: what a file or folder is, and what of it would be refused, and why. */
#include "engine/main/cli.h"

#include "engine/formats/adapter_file.h"
#include "engine/formats/weights.h"
#include "engine/vocab.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char help[] =
    "usage: openlora-engine inspect PATH [--base MODEL] [--no-digest]\n\n"
    "Says what PATH is: a model (folder or GGUF file), a LoRA adapter (PEFT folder or GGUF\n"
    "file), or a tokenizer; its shapes and its digest; and everything for which it would be\n"
    "refused. Exit status 1 if it would be.\n\n"
    "      --base MODEL    check the adapter against this model, too\n"
    "      --no-digest     do not read all of a model for its digest\n";

enum { OPT_BASE = 1, OPT_NO_DIGEST };

static const struct option options[] = {
    {"base", required_argument, NULL, OPT_BASE},
    {"no-digest", no_argument, NULL, OPT_NO_DIGEST},
    {0},
};

typedef struct job {
    const char *path, *base;
    bool no_digest;
    int refused; /* fatal findings */
} job;

static void print_digest(const ol_digest *digest)
{
    char hex[OL_DIGEST_HEX];

    ol_digest_hex(digest, hex);
    printf("digest        %s\n", hex);
}

static void print_finding(void *context, bool fatal, const ol_error *finding)
{
    job *j = context;

    printf("%s       %s\n", fatal ? "REFUSED" : "note   ", finding->message);
    if (finding->detail[0])
        printf("              %s\n", finding->detail);
    if (finding->hint[0])
        printf("              %s\n", finding->hint);
    j->refused += fatal;
}

/* -- tokenizers ---------------------------------------------------------------------- */

static void print_tokenizer(const ol_tokenizer *tok)
{
    size_t n;
    const int32_t *eog = ol_tokenizer_eog(tok, &n);

    printf(
        "tokenizer     %d tokens, bos %d%s, eos %d, ends generation:", ol_tokenizer_vocab_size(tok),
        ol_tokenizer_bos(tok), ol_tokenizer_adds_bos(tok) ? " (added)" : "", ol_tokenizer_eos(tok));
    for (size_t i = 0; i < n; i++)
        printf(" %d", eog[i]);
    putchar('\n');
}

static void inspect_tokenizer(job *j)
{
    ol_tokenizer *tok;
    ol_error err;

    printf("%s: a tokenizer\n", j->path);
    if (ol_vocab_of_path(j->path, &tok, &err) != OL_OK) {
        print_finding(j, true, &err);
        return;
    }
    print_tokenizer(tok);
    ol_tokenizer_free(tok);
}

/* -- models ---------------------------------------------------------------------------- */

static void print_windows(const ol_model_config *c)
{
    int full = 0, window = 0;

    for (int i = 0; i < c->n_layers; i++) {
        full += c->window[i] == 0;
        window = c->window[i] ? c->window[i] : window;
    }
    if (window)
        printf("attention     sliding window of %d tokens in %d of %d layers\n", window,
               c->n_layers - full, c->n_layers);
}

static void print_model(const ol_model_source *source)
{
    const ol_model_config *c = ol_model_source_config(source);

    printf("name          %s\n", ol_model_source_name(source));
    printf("architecture  %s\n", ol_family_name(c->family));
    printf("format        %s, %.1f MiB\n", ol_model_source_format(source),
           (double)ol_model_source_bytes(source) / (1 << 20));
    printf("parameters    %lld\n", (long long)ol_model_source_parameters(source));
    printf("shape         %d layers, hidden %d, ffn %d, vocabulary %d\n", c->n_layers, c->hidden,
           c->ffn, c->vocab);
    printf("heads         %d of %d, %d for keys and values\n", c->n_heads, c->head_dim,
           c->n_kv_heads);
    printf("context       %d\n", c->max_position);
    printf("rope          theta %g, %d dims%s\n", c->rope.theta, c->rope.dims,
           c->rope.interleaved ? ", interleaved" : "");
    printf("options      %s%s%s%s%s\n", c->tie_embeddings ? " tied-embeddings" : "",
           c->qkv_bias ? " qkv-bias" : "", c->o_bias ? " o-bias" : "",
           c->mlp_bias ? " mlp-bias" : "", c->qk_norm ? " qk-norm" : "");
    print_windows(c);
}

static void print_model_tokenizer(job *j, const ol_model_source *source)
{
    ol_tokenizer *tok;
    ol_error err;

    if (ol_vocab_of_model(source, &tok, &err) != OL_OK)
        print_finding(j, true, &err);
    else if (tok)
        print_tokenizer(tok);
    else
        printf("tokenizer     none: token ids only\n");
    ol_tokenizer_free(tok);
}

static void inspect_model(job *j)
{
    ol_model_source *source;
    ol_digest digest;
    ol_error err;

    printf("%s: a model\n", j->path);
    if (ol_model_source_open(j->path, &source, &err) != OL_OK) {
        print_finding(j, true, &err);
        return;
    }
    print_model(source);
    print_model_tokenizer(j, source);
    (void)ol_model_source_check(source, print_finding, j, &err); /* told finding by finding */
    if (!j->no_digest) {
        if (ol_model_source_digest(source, NULL, NULL, &digest, &err) == OL_OK)
            print_digest(&digest);
        else
            print_finding(j, true, &err);
    }
    ol_model_source_close(source);
}

/* -- adapters --------------------------------------------------------------------------- */

static void print_modules(const ol_adapter_file *file)
{
    int64_t layers = 0;

    printf("modules       %d:", file->n_modules);
    for (int m = 0; m < OL_MODULES; m++)
        if (file->module_mask >> m & 1)
            printf(" %s", ol_module_name((ol_module)m));
    for (int i = 0; i < file->n_modules; i++)
        layers += i == 0 || file->modules[i].layer != file->modules[i - 1].layer;
    printf(" in %lld layers\n", (long long)layers);
}

static void print_adapter(const ol_adapter_file *file)
{
    const ol_lora_module *first = &file->modules[0];

    printf("format        %s, %s\n", file->format == OL_ADAPTER_PEFT ? "PEFT" : "GGUF",
           ol_dtype_name(first->a.dtype));
    if (file->base_model)
        printf("base model    %s\n", file->base_model);
    printf("parameters    %lld, %.2f MiB\n", (long long)file->parameters,
           (double)file->tensor_bytes / (1 << 20));
    printf("rank          %d at most; scale of the first module %g\n", file->max_rank,
           (double)first->scale);
    print_modules(file);
}

static void inspect_adapter_with(job *j, const ol_model_config *base)
{
    ol_arena *arena = ol_arena_create();
    ol_adapter_disk disk;
    ol_adapter_file file;
    ol_digest digest;
    ol_error err;

    if (!arena)
        return;
    if (ol_adapter_read_path(j->path, base, arena, &disk, &file, &err) != OL_OK) {
        print_finding(j, true, &err);
    } else {
        print_adapter(&file);
        ol_adapter_digest(disk.weights.data, disk.weights.len, (const char *)disk.config.data,
                          disk.config.len, &digest);
        print_digest(&digest);
        ol_adapter_disk_close(&disk);
    }
    ol_arena_destroy(arena);
}

static void inspect_adapter(job *j)
{
    ol_model_source *source = NULL;
    ol_error err;

    printf("%s: a LoRA adapter\n", j->path);
    if (j->base && ol_model_source_open(j->base, &source, &err) != OL_OK)
        print_finding(j, true, &err);
    else
        inspect_adapter_with(j, source ? ol_model_source_config(source) : NULL);
    ol_model_source_close(source);
}

/* -- which it is -------------------------------------------------------------------------- */

typedef enum kind { KIND_MODEL, KIND_ADAPTER, KIND_TOKENIZER } kind;

static bool folder_has(const char *folder, const char *name)
{
    char path[4096];

    return (size_t)snprintf(path, sizeof(path), "%s/%s", folder, name) < sizeof(path) &&
           access(path, F_OK) == 0;
}

static ol_code kind_of_gguf(const char *path, kind *k, ol_error *err)
{
    ol_gguf *gguf;

    OL_TRY(ol_gguf_open(path, &gguf, err));
    if (ol_gguf_is(gguf, "general.type", "adapter"))
        *k = KIND_ADAPTER;
    else
        *k = ol_gguf_tensors(gguf) ? KIND_MODEL : KIND_TOKENIZER;
    ol_gguf_close(gguf);
    return OL_OK;
}

static ol_code kind_of(const char *path, kind *k, ol_error *err)
{
    struct stat st;
    ol_map map;
    bool gguf;

    *k = KIND_TOKENIZER;
    if (stat(path, &st) != 0)
        return ol_fail_errno(err, "could not open", path);
    if (S_ISDIR(st.st_mode)) {
        if (folder_has(path, "adapter_config.json"))
            *k = KIND_ADAPTER;
        else if (folder_has(path, "config.json"))
            *k = KIND_MODEL;
        return OL_OK;
    }
    OL_TRY(ol_map_open(path, &map, err));
    gguf = ol_gguf_magic(map.data, map.len);
    ol_map_close(&map);
    return gguf ? kind_of_gguf(path, k, err) : OL_OK;
}

static bool take_option(int c, char *arg, void *context)
{
    job *j = context;

    switch (c) {
    case OPT_BASE:
        j->base = arg;
        return true;
    case OPT_NO_DIGEST:
        j->no_digest = true;
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
    if (optind + 1 != argc)
        return cli_usage(argv[0], "name one file or folder");
    j->path = argv[optind];
    return -1;
}

int cmd_inspect(int argc, char **argv)
{
    static void (*const inspect[])(job *) = {
        [KIND_MODEL] = inspect_model,
        [KIND_ADAPTER] = inspect_adapter,
        [KIND_TOKENIZER] = inspect_tokenizer,
    };
    job j = {0};
    ol_error err;
    kind k;
    int status = take_options(argc, argv, &j);

    if (status >= 0)
        return status;
    if (kind_of(j.path, &k, &err) != OL_OK)
        return cli_fail(&err);
    inspect[k](&j);
    return j.refused ? EXIT_FAILED : EXIT_OK;
}
