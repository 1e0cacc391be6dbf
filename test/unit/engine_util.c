/* engine_util.c: see engine_util.h. */
#include "engine_util.h"

#include "engine/engine_internal.h"
#include "engine/formats/adapter_file.h"

#include <stdio.h>
#include <unistd.h>

void must(ol_code code, const ol_error *err)
{
    if (code != OL_OK)
        fail_msg("%s: %s | %s | %s", ol_code_name(code), err->message, err->detail, err->hint);
}

void must_fail(ol_code got, ol_code code, const char *word, const ol_error *err)
{
    if (got == OL_OK)
        fail_msg("no error, expected one about \"%s\"", word);
    if (!strstr(err->message, word) && !strstr(err->detail, word) && !strstr(err->hint, word))
        fail_msg("\"%s\" is not in: %s | %s | %s", word, err->message, err->detail, err->hint);
    if (got != code || err->code != code)
        fail_msg("%s, expected %s: %s", ol_code_name(got), ol_code_name(code), err->message);
}

const char *golden_path(const char *rest)
{
    static char paths[8][1024];
    static int next;
    const char *root = getenv("OPENLORA_GOLDEN");
    char *path = paths[next++ % 8];

    snprintf(path, sizeof(paths[0]), "%s/%s", root ? root : "test/data/golden", rest);
    return path;
}

void need_path(const char *path)
{
    if (access(path, F_OK) == 0)
        return;
    print_message("skipped: no %s\n", path);
    skip();
}

const char *util_program_dir(void)
{
    static char dir[2048];
    ssize_t n = readlink("/proc/self/exe", dir, sizeof(dir) - 1);
    char *slash;

    dir[n > 0 ? n : 0] = '\0';
    slash = strrchr(dir, '/');
    if (slash)
        *slash = '\0';
    return dir;
}

const char *util_engine_program(void)
{
    static char path[2100];

    snprintf(path, sizeof(path), "%s/../openlora-engine", util_program_dir());
    return path;
}

/* Devices lie where the build puts them: above the folder of the tests. */
static const char *device_dir(void)
{
    static char dir[4096];
    const char *exe = util_program_dir();

    if (dir[0])
        return dir;
    if (getenv("OL_DEVICE_DIR")) { /* a program that a loader has started is not itself */
        snprintf(dir, sizeof(dir), "%s", getenv("OL_DEVICE_DIR"));
        return dir;
    }
    snprintf(dir, sizeof(dir), "%s/openlora_cpu.so", exe);
    snprintf(dir, sizeof(dir), access(dir, F_OK) == 0 ? "%s" : "%s/..", exe);
    return dir;
}

/* OL_TEST_DEVICE=simt: the CUDA device on the processor; =cuda: on a GPU. */
bool util_on_cuda(void)
{
    return getenv("OL_TEST_DEVICE") != NULL;
}

bool util_on_simt(void)
{
    return util_on_cuda() && strcmp(getenv("OL_TEST_DEVICE"), "simt") == 0;
}

static const char *cuda_dir(void)
{
    static char dir[4200];

    snprintf(dir, sizeof(dir), "%s%s", device_dir(), util_on_simt() ? "/simt" : "");
    return dir;
}

ol_engine_options util_options(const char *model_path)
{
    if (util_on_cuda())
        return (ol_engine_options){.model_path = model_path,
                                   .device_dir = cuda_dir(),
                                   .device = "cuda",
                                   .threads = 1,
                                   .kv_dtype = -1};
    return util_cpu_options(model_path);
}

ol_engine_options util_cpu_options(const char *model_path)
{
    return (ol_engine_options){.model_path = model_path,
                               .device_dir = device_dir(),
                               .device = "cpu",
                               .isa = "portable",
                               .threads = 1,
                               .kv_dtype = OL_F32};
}

bool util_in_pool(void)
{
    return getenv("OL_TEST_POOL") != NULL;
}

ol_engine *util_open(const ol_engine_options *options)
{
    ol_engine_options how = *options;
    ol_engine *engine = NULL;
    ol_error err;

    if (util_in_pool() && !how.cache_bytes)
        how.cache_bytes = (size_t)64 << 20;
    must(ol_engine_open(&how, &engine, &err), &err);
    engine->patience_us = 3600000000u; /* no test's host is late, however slow the machine */
    return engine;
}

/* An engine keeps it where pages and adapters share a pool. */
size_t util_page_bytes(const ol_engine_options *options)
{
    ol_engine_options how = *options;
    ol_engine *engine;
    size_t bytes;

    how.cache_bytes = (size_t)64 << 20;
    how.kv_bytes = 0;
    engine = util_open(&how);
    bytes = engine->page_bytes;
    ol_engine_close(engine);
    assert_true(bytes > 0);
    return bytes;
}

/* -- adapters ------------------------------------------------------------------------ */

bool util_try_adapter(const char *path, ol_buf *weights, ol_buf *config, ol_digest *digest,
                      ol_error *err)
{
    ol_adapter_disk disk;

    *weights = *config = (ol_buf){0};
    if (ol_adapter_disk_open(path, &disk, err) != OL_OK)
        return false;
    ol_buf_put(weights, disk.weights.data, disk.weights.len);
    ol_buf_put(config, disk.config.data, disk.config.len);
    ol_adapter_disk_close(&disk);
    ol_adapter_digest(weights->data, weights->len, (const char *)config->data, config->len, digest);
    return true;
}

void util_read_adapter(const char *path, ol_buf *weights, ol_buf *config, ol_digest *digest)
{
    ol_error err;

    if (!util_try_adapter(path, weights, config, digest, &err))
        must(err.code, &err);
}

void util_make_adapter(const char *model, const char *name, int alpha, ol_buf *weights,
                       ol_buf *config, ol_digest *digest)
{
    static const char key[] = "\"lora_alpha\":";
    char path[512];
    ol_buf old;
    const char *at, *text;

    snprintf(path, sizeof(path), "%s/adapters/%s", model, name);
    util_read_adapter(golden_path(path), weights, &old, digest);
    ol_buf_put_u8(&old, 0);
    text = (const char *)old.data;
    at = strstr(text, key);
    assert_non_null(at);
    at += strlen(key);
    *config = (ol_buf){0};
    ol_buf_put(config, text, (size_t)(at - text));
    ol_buf_printf(config, " %d", alpha);
    at += strcspn(at, ",}");
    ol_buf_put(config, at, strlen(at));
    ol_buf_free(&old);
    ol_adapter_digest(weights->data, weights->len, (const char *)config->data, config->len, digest);
}

ol_digest util_put_adapter(ol_engine *engine, const char *path)
{
    ol_buf weights, config;
    ol_adapter_bytes bytes;
    ol_adapter_facts facts;
    ol_digest digest;
    ol_error err;

    util_read_adapter(path, &weights, &config, &digest);
    bytes = util_bytes(&weights, &config);
    must(ol_engine_adapter_put(engine, &digest, &bytes, &facts, &err), &err);
    assert_true(ol_digest_equal(&digest, &facts.digest));
    ol_buf_free(&weights);
    ol_buf_free(&config);
    return digest;
}

/* -- running -------------------------------------------------------------------------- */

static void take_token(util_result *r, const ol_event *e)
{
    assert_int_equal(e->index, r->n);
    r->tokens = realloc(r->tokens, (size_t)(r->n + 1) * sizeof(int32_t));
    r->logprobs = realloc(r->logprobs, (size_t)(r->n + 1) * sizeof(float));
    r->tokens[r->n] = e->token;
    r->logprobs[r->n++] = e->logprob;
    ol_buf_put(&r->text, e->text.data, e->text.len);
}

static void take_done(util_result *r, const ol_event *e)
{
    r->done = true;
    r->finish = e->finish;
    r->prompt_tokens = e->prompt_tokens;
    r->completion_tokens = e->completion_tokens;
    r->cached_tokens = e->cached_tokens;
    r->logprob_sum = e->logprob_sum;
    r->n_shares = e->n_shares;
    for (int i = 0; i < e->n_shares; i++)
        r->shares[i] = e->shares[i];
    r->queue_us = e->queue_us;
    r->prefill_us = e->prefill_us;
    r->decode_us = e->decode_us;
    ol_buf_put(&r->text, e->text.data, e->text.len);
}

void util_take_event(const ol_event *e, util_result *results, int n)
{
    util_result *r;

    assert_true(e->tag < (uint64_t)n);
    r = &results[e->tag];
    assert_false(r->done || r->failed); /* DONE and FAILED are the last of a tag */
    if (e->kind == OL_EVENT_TOKEN) {
        take_token(r, e);
    } else if (e->kind == OL_EVENT_NEED_ADAPTER) {
        r->needs++;
        r->needed = e->digest;
    } else if (e->kind == OL_EVENT_DONE) {
        take_done(r, e);
    } else {
        r->failed = true;
        r->error = e->error;
    }
}

void util_take(ol_engine *engine, util_result *results, int n)
{
    ol_event e;

    while (ol_engine_poll(engine, &e))
        util_take_event(&e, results, n);
}

void util_run(ol_engine *engine, util_result *results, int n)
{
    ol_error err;

    util_take(engine, results, n);
    while (ol_engine_busy(engine)) {
        must(ol_engine_step(engine, &err), &err);
        util_take(engine, results, n);
    }
}

void util_free(util_result *results, int n)
{
    for (int i = 0; i < n; i++) {
        free(results[i].tokens);
        free(results[i].logprobs);
        ol_buf_free(&results[i].text);
    }
    memset(results, 0, (size_t)n * sizeof(*results));
}

ol_request util_request(uint64_t tag, const int32_t *prompt, int n_prompt, int max_tokens)
{
    ol_request q = {.tag = tag,
                    .prompt_tokens = prompt,
                    .n_prompt_tokens = n_prompt,
                    .sampling = ol_sampling_default()};

    q.sampling.max_tokens = max_tokens;
    q.sampling.ignore_eos = true;
    return q;
}

ol_request util_text_request(const char *text, int max_tokens)
{
    ol_request q = util_request(0, NULL, 0, max_tokens);

    q.prompt = (ol_text){text, strlen(text)};
    return q;
}

void util_submit(ol_engine *engine, const ol_request *q)
{
    ol_error err;

    must(ol_engine_submit(engine, q, &err), &err);
}

void util_expect_idle(ol_engine *engine)
{
    ol_engine_info info;
    ol_event e;

    assert_false(ol_engine_busy(engine));
    assert_false(ol_engine_poll(engine, &e));
    ol_engine_info_get(engine, &info);
    assert_int_equal(info.kv_pages_free, info.kv_pages);
    assert_int_equal(info.running, 0);
    assert_int_equal(info.waiting, 0);
}
