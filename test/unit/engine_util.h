/* engine_util.h: what the tests of the engine share: opening fixtures, running requests. */
#ifndef TEST_ENGINE_UTIL_H
#define TEST_ENGINE_UTIL_H

#include "base/buf.h"
#include "engine/engine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Fails the test with the error's text unless the code is OL_OK. */
void must(ol_code code, const ol_error *err);
/* Fails the test unless it failed with `code` and some text holds `word`. */
void must_fail(ol_code got, ol_code code, const char *word, const ol_error *err);

/* The folder of golden fixtures (OPENLORA_GOLDEN) joined with `rest`; static storage,
 * good until a few calls later. */
const char *golden_path(const char *rest);
/* Skips the test, saying why, when the path does not exist. */
void need_path(const char *path);

/* The folder of this program, and the engine's program that was built with it; static storage. */
const char *util_program_dir(void);
const char *util_engine_program(void);

/* Portable device, one thread, F32 KV: what the fixtures are compared with. */
/* OL_TEST_DEVICE: the CUDA device is tested; on the processor. */
bool util_on_cuda(void);
bool util_on_simt(void);
bool util_in_pool(void); /* OL_TEST_POOL: engines have one pool for pages and adapters */
ol_engine_options util_options(const char *model_path);
ol_engine_options util_cpu_options(const char *model_path); /* whatever is tested */
ol_engine *util_open(const ol_engine_options *options);
/* Of a page of such an engine, as its device says. */
size_t util_page_bytes(const ol_engine_options *options);

/* Reads an adapter from disk; both buffers are the caller's to free. */
void util_read_adapter(const char *path, ol_buf *weights, ol_buf *config, ol_digest *digest);
/* The same, but false and an error when the files cannot be read. */
bool util_try_adapter(const char *path, ol_buf *weights, ol_buf *config, ol_digest *digest,
                      ol_error *err);
/* Like adapter `name` of golden model `model`, but with another lora_alpha, and so with
 * another digest and other effects. */
void util_make_adapter(const char *model, const char *name, int alpha, ol_buf *weights,
                       ol_buf *config, ol_digest *digest);
static inline ol_adapter_bytes util_bytes(const ol_buf *weights, const ol_buf *config)
{
    return (ol_adapter_bytes){weights->data, weights->len, (const char *)config->data, config->len};
}

/* Reads it into the engine. */
ol_digest util_put_adapter(ol_engine *engine, const char *path);

/* -- running ---------------------------------------------------------------------- */

/* What became of one request. */
typedef struct util_result {
    int32_t *tokens; /* [n] */
    float *logprobs; /* [n] */
    int n;
    ol_buf text;
    bool done, failed;
    ol_finish finish;
    int prompt_tokens, completion_tokens, cached_tokens;
    int n_shares;
    double shares[OL_MAX_REQUEST_ADAPTERS];
    double logprob_sum;
    int needs; /* NEED_ADAPTER events */
    ol_digest needed;
    uint64_t queue_us, prefill_us, decode_us;
    ol_error error;
} util_result;

/* What an event says of results[tag]. */
void util_take_event(const ol_event *e, util_result *results, int n);
/* Takes events until there are none; those of tag t go to results[t]. */
void util_take(ol_engine *engine, util_result *results, int n);
/* Steps until nothing is busy. */
void util_run(ol_engine *engine, util_result *results, int n);
void util_free(util_result *results, int n);

/* A greedy request over token ids, ignoring eos. */
ol_request util_request(uint64_t tag, const int32_t *prompt, int n_prompt, int max_tokens);
/* The same of a text, with tag 0. */
ol_request util_text_request(const char *text, int max_tokens);
void util_submit(ol_engine *engine, const ol_request *q);
/* Every counter of something in use is back to none. */
void util_expect_idle(ol_engine *engine);

#endif
