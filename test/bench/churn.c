/*
 * churn.c: an engine under a load whose adapters do not fit its cache.
 *
 *   churn MODEL CASE [CASE ...]      a case: NAME=ADAPTERS:SLOTS:RANKS:ZIPF[:int8]
 *
 * :int8: adapters in eight bits; SLOTS are as much memory as they are without.
 *
 * ADAPTERS different adapters, requested uniformly (ZIPF 0) or with probability 1/k^ZIPF; a
 * cache of SLOTS of them (0: all); RANKS a list like 8/16/32/64. PARALLEL=8 requests are
 * always in flight, each of PROMPT=128 and GENERATE=32 tokens; REQUESTS=200 are counted
 * after half as many to warm up. Before, whatever will be asked for is put into the cache once: so
 * without SLOTS "all fit" means no loads, and what it loses is the price of different adapters in a
 * batch alone. With SLOTS these go again, as in a service that has run for long, while by requests
 * for no token four times as many as the cache holds are asked for at random; with NEW=1 they were
 * never there, and most loads are of adapters that this engine has not seen.
 * What the engine asks for is offered at once, as by a host that has it at hand: so the figures
 * are of hashing, checking, placing and evicting, not of reading rows.
 *
 * On DEVICE=cpu, found in DEVICE_DIR=build, with KV_MB of keys and values (0: the engine's
 * default).
 *
 * ROUNDS=1 times, all cases in turns; one line per case and round: tokens per second, processor
 * time per thousand tokens (which other programs on the machine change less), time to the first
 * token (median, 95th percentile), loads, processor time of one (when the cache was filled), mean
 * rank of a request.
 *
 * Adapters of one rank share their weights and differ by lora_alpha, and so by digest: each
 * load does the whole work.
 */
#include "base/spares.h"
#include "engine/engine.h"
#include "engine/formats/weights.h"
#include "engine/main/random_adapter.h"

#include <math.h>
#include <openssl/evp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_RANKS 8

typedef struct kind {
    int rank;
    ol_buf weights, config;
    EVP_MD_CTX *hashed; /* of what all adapters of the kind have in common */
} kind;

typedef struct bench {
    const char *model;
    const ol_model_config *base;
    ol_engine *engine;
    ol_quantization adapters;
    int n_adapters, n_kinds, parallel, prompt, generate, requests, slots;
    double load_cpu;      /* seconds of one load */
    double zipf, *chance; /* [n_adapters] summed up */
    kind kinds[MAX_RANKS];
    ol_spares spares; /* memory of what was offered, as `serve` keeps it */
    uint64_t noise;
    int32_t *tokens;
    int *adapter_of;      /* by request */
    double *begun, *wait; /* by request: seconds; to the first token */
    int submitted, finished;
} bench;

static double seconds_of(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double now(void)
{
    return seconds_of(CLOCK_MONOTONIC);
}

static void die(const ol_error *err)
{
    fprintf(stderr, "churn: %s %s\n", err->message, err->detail);
    exit(1);
}

static double uniform(bench *b)
{
    b->noise = b->noise * 6364136223846793005u + 1442695040888963407u;
    return (double)(b->noise >> 11) / (double)(1ull << 53);
}

static int setting(const char *name, int otherwise)
{
    const char *text = getenv(name);

    return text ? atoi(text) : otherwise;
}

/* -- adapters --------------------------------------------------------------------------- */

static void make_kind(bench *b, int rank)
{
    kind *k = &b->kinds[b->n_kinds++];
    uint8_t length[8];
    ol_error err;

    k->rank = rank;
    if (random_adapter_make(b->base, rank, (uint64_t)rank, &k->weights, &k->config, &err) != OL_OK)
        die(&err);
    for (int i = 0; i < 8; i++)
        length[i] = (uint8_t)((uint64_t)k->weights.len >> (8 * i));
    k->hashed = EVP_MD_CTX_new();
    EVP_DigestInit_ex(k->hashed, EVP_sha256(), NULL);
    EVP_DigestUpdate(k->hashed, "openlora.adapter.1", sizeof("openlora.adapter.1"));
    EVP_DigestUpdate(k->hashed, length, sizeof(length));
    EVP_DigestUpdate(k->hashed, k->weights.data, k->weights.len);
}

/* Its config, and the digest of all of it. */
static void name_adapter(const bench *b, int number, ol_buf *config, ol_digest *digest)
{
    const kind *k = &b->kinds[number % b->n_kinds];
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    char *text = strndup((const char *)k->config.data, k->config.len);
    char *alpha = strstr(text, "\"lora_alpha\":") + strlen("\"lora_alpha\":");

    ol_buf_reset(config);
    ol_buf_put(config, text, (size_t)(alpha - text));
    ol_buf_printf(config, "%d", 1 + number);
    ol_buf_printf(config, "%s", alpha + strspn(alpha, "0123456789"));
    EVP_MD_CTX_copy_ex(hash, k->hashed);
    EVP_DigestUpdate(hash, config->data, config->len);
    EVP_DigestFinal_ex(hash, digest->bytes, NULL);
    EVP_MD_CTX_free(hash);
    free(text);
}

/* Into the cache, here and now. */
static void put_adapter(bench *b, int number)
{
    const kind *k = &b->kinds[number % b->n_kinds];
    ol_buf config = {0};
    ol_adapter_bytes bytes;
    ol_adapter_facts facts;
    ol_digest digest;
    ol_error err;

    name_adapter(b, number, &config, &digest);
    bytes =
        (ol_adapter_bytes){k->weights.data, k->weights.len, (const char *)config.data, config.len};
    if (ol_engine_adapter_put(b->engine, &digest, &bytes, &facts, &err) != OL_OK)
        die(&err);
    ol_buf_free(&config);
}

static void offer_adapter(bench *b, uint64_t tag)
{
    int number = b->adapter_of[tag];
    const kind *k = &b->kinds[number % b->n_kinds];
    ol_adapter_offer offer = {.tag = tag, .weights_len = k->weights.len};
    ol_buf config = {0}, room;
    ol_error err;

    name_adapter(b, number, &config, &offer.expected);
    offer.config_len = config.len;
    room = ol_spares_take(&b->spares);
    ol_buf_put(&room, k->weights.data, k->weights.len);
    ol_buf_put(&room, config.data, config.len);
    offer.bytes = room.data;
    ol_buf_free(&config);
    if (ol_engine_adapter_offer(b->engine, &offer, &err) != OL_OK)
        die(&err);
}

/* -- requests ------------------------------------------------------------------------------- */

static int draw(bench *b)
{
    double at = uniform(b) * b->chance[b->n_adapters - 1];
    int low = 0, high = b->n_adapters - 1;

    while (low < high) {
        int middle = (low + high) / 2;

        if (b->chance[middle] < at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void submit(bench *b, uint64_t tag, int generate)
{
    ol_request q = {.tag = tag,
                    .prompt_tokens = b->tokens,
                    .n_prompt_tokens = b->prompt,
                    .n_adapters = 1,
                    .sampling = ol_sampling_default()};
    ol_adapter_use use = {.weight = 1};
    ol_buf config = {0};
    ol_error err;

    name_adapter(b, b->adapter_of[tag], &config, &use.digest);
    ol_buf_free(&config);
    for (int i = 0; i < b->prompt; i++)
        b->tokens[i] = (int32_t)(uniform(b) * b->base->vocab);
    q.adapters = &use;
    q.sampling.max_tokens = generate;
    q.sampling.ignore_eos = true;
    b->begun[tag] = now();
    if (ol_engine_submit(b->engine, &q, &err) != OL_OK)
        die(&err);
}

static void take_events(bench *b)
{
    ol_adapter_result result;
    ol_event e;

    while (ol_engine_adapter_result(b->engine, &result)) {
        ol_buf room = {.data = result.offered, .cap = result.bytes};

        if (result.code != OL_OK)
            die(&result.error);
        ol_spares_give(&b->spares, &room);
    }
    while (ol_engine_poll(b->engine, &e)) {
        if (e.kind == OL_EVENT_FAILED)
            die(&e.error);
        if (e.kind == OL_EVENT_NEED_ADAPTER)
            offer_adapter(b, e.tag);
        else if (e.kind == OL_EVENT_TOKEN && e.index == 0)
            b->wait[e.tag] = now() - b->begun[e.tag];
        else if (e.kind == OL_EVENT_DONE)
            b->finished++;
    }
}

/* Until `until` have ended, with `parallel` in flight. */
static void run(bench *b, int until, int parallel)
{
    struct pollfd loaded = {.fd = ol_engine_adapter_fd(b->engine), .events = POLLIN};
    ol_error err;

    while (b->finished < until) {
        while (b->submitted - b->finished < parallel)
            submit(b, (uint64_t)b->submitted++, b->generate);
        take_events(b);
        if (b->finished >= until) /* without a step: one for no token */
            break;
        if (!ol_engine_busy(b->engine))
            (void)poll(&loaded, 1, ol_engine_patience_ms(b->engine));
        else if (ol_engine_step(b->engine, &err) != OL_OK)
            die(&err);
        take_events(b);
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double mean_rank(const bench *b)
{
    double sum = 0;

    for (int i = 0; i < b->requests; i++)
        sum += b->kinds[b->adapter_of[b->requests / 2 + i] % b->n_kinds].rank;
    return sum / b->requests;
}

static void report(bench *b, const char *name, double seconds, double cpu, uint64_t loads)
{
    double *waits = b->wait + b->requests / 2;
    int n = b->requests;
    double tokens = (double)n * (b->prompt + b->generate);

    qsort(waits, (size_t)n, sizeof(double), by_value);
    printf("%-16s %8.1f tokens/s %8.2f cpu s/1000   first token %6.0f ms, 95%% %6.0f ms"
           "  %5llu loads of %.1f cpu ms   rank %.1f\n",
           name, tokens / seconds, 1000 * cpu / tokens, waits[n / 2] * 1000,
           waits[n * 95 / 100] * 1000, (unsigned long long)loads, b->load_cpu * 1000, mean_rank(b));
    fflush(stdout);
}

/* -- cases ------------------------------------------------------------------------------------ */

static void open_engine(bench *b, int slots)
{
    ol_engine_options options = {.model_path = b->model, .kv_dtype = -1};
    char folder[4096];
    ol_error err;

    snprintf(folder, sizeof(folder), "%s", getenv("DEVICE_DIR") ? getenv("DEVICE_DIR") : "build");
    options.device_dir = folder;
    options.device = getenv("DEVICE") ? getenv("DEVICE") : "cpu";
    options.kv_bytes = (size_t)setting("KV_MB", 0) << 20;
    options.threads = setting("THREADS", 0);
    options.max_seqs = b->parallel + 1;
    options.no_prefix_cache = true;
    options.adapters = b->adapters;
    b->slots = slots;
    if (slots > 0) {
        size_t bytes = 0;

        for (int i = 0; i < b->n_kinds; i++)
            bytes += b->kinds[i].weights.len;
        options.adapter_bytes = (bytes / (size_t)b->n_kinds + 65536) * (size_t)slots;
    } else {
        options.adapter_bytes = (size_t)8 << 30;
    }
    if (ol_engine_open(&options, &b->engine, &err) != OL_OK)
        die(&err);
}

/* Which request has which adapter is the same in all cases of these adapters. */
static void prepare(bench *b)
{
    size_t n = (size_t)(b->requests * 3 / 2 + b->parallel + 1);
    double sum = 0;

    b->chance = malloc((size_t)b->n_adapters * sizeof(double));
    for (int i = 0; i < b->n_adapters; i++)
        b->chance[i] = sum += pow(i + 1, -b->zipf);
    b->tokens = malloc((size_t)b->prompt * sizeof(int32_t));
    b->adapter_of = calloc(n, sizeof(int));
    b->begun = calloc(n, sizeof(double));
    b->wait = calloc(n, sizeof(double));
    for (size_t i = 0; i < n; i++)
        b->adapter_of[i] = draw(b);
}

/* A request that is for nothing: its adapter is loaded, if need be, and counts as used. */
static void visit(bench *b, int number)
{
    int tag = b->requests * 3 / 2 + b->parallel, until = b->finished + 1;

    b->adapter_of[tag] = number;
    submit(b, (uint64_t)tag, 0);
    run(b, until, 0);
    b->finished--;
}

/* The cache as it is after a long time, or with everything in it. */
static void fill_cache(bench *b)
{
    int n = b->requests * 3 / 2 + b->parallel;
    ol_engine_info before, after;
    double start;

    for (int i = 0; i < n && !(b->slots > 0 && setting("NEW", 0)); i++)
        put_adapter(b, b->adapter_of[i]);
    ol_engine_info_get(b->engine, &before);
    start = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    for (int i = 0; i < 4 * b->slots; i++)
        visit(b, draw(b));
    ol_engine_info_get(b->engine, &after);
    if (after.adapter_loads > before.adapter_loads)
        b->load_cpu = (seconds_of(CLOCK_PROCESS_CPUTIME_ID) - start) /
                      (double)(after.adapter_loads - before.adapter_loads);
}

static void free_bench(bench *b)
{
    ol_engine_close(b->engine);
    for (int i = 0; i < b->n_kinds; i++) {
        ol_buf_free(&b->kinds[i].weights);
        ol_buf_free(&b->kinds[i].config);
        EVP_MD_CTX_free(b->kinds[i].hashed);
    }
    ol_spares_drop(&b->spares);
    free(b->chance);
    free(b->tokens);
    free(b->adapter_of);
    free(b->begun);
    free(b->wait);
}

static void run_case(const bench *defaults, const char *how)
{
    bench b = *defaults;
    char *copy = strdup(how), *text = copy;
    char *name = strsep(&text, "="), *adapters = strsep(&text, ":"), *slots = strsep(&text, ":");
    char *ranks = strsep(&text, ":"), *zipf = strsep(&text, ":"), *rank;
    ol_engine_info before, after;
    double start, cpu;

    if (!adapters || !slots || !ranks || !zipf || (text && strcmp(text, "int8") != 0)) {
        fprintf(stderr, "churn: a case is NAME=ADAPTERS:SLOTS:RANKS:ZIPF[:int8]\n");
        exit(2);
    }
    b.n_adapters = atoi(adapters);
    b.zipf = atof(zipf);
    b.adapters = text ? OL_QUANT_INT8 : OL_QUANT_AS_IS;
    while ((rank = strsep(&ranks, "/")) && b.n_kinds < MAX_RANKS)
        make_kind(&b, atoi(rank));
    prepare(&b);
    open_engine(&b, atoi(slots));
    fill_cache(&b);
    run(&b, b.requests / 2, b.parallel);
    ol_engine_info_get(b.engine, &before);
    start = now();
    cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    run(&b, b.requests * 3 / 2, b.parallel);
    cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    ol_engine_info_get(b.engine, &after);
    report(&b, name, now() - start, cpu, after.adapter_loads - before.adapter_loads);
    free_bench(&b);
    free(copy);
}

int main(int argc, char **argv)
{
    bench b = {.noise = 42,
               .spares = {.most = (size_t)128 << 20},
               .parallel = setting("PARALLEL", 8),
               .prompt = setting("PROMPT", 128),
               .generate = setting("GENERATE", 32),
               .requests = setting("REQUESTS", 200)};
    ol_model_source *source;
    ol_error err;

    if (argc < 3) {
        fprintf(stderr, "usage: churn MODEL NAME=ADAPTERS:SLOTS:RANKS:ZIPF ...\n");
        return 2;
    }
    b.model = argv[1];
    if (ol_model_source_open(b.model, &source, &err) != OL_OK)
        die(&err);
    b.base = ol_model_source_config(source);
    for (int round = 0; round < setting("ROUNDS", 1); round++)
        for (int i = 2; i < argc; i++)
            run_case(&b, argv[i]);
    ol_model_source_close(source);
    return 0;
}
