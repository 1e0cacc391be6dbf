/* engine_requests.h: for tests of requests: an engine of the small model that a program's tests
 * share, and one request at a time on it. */
#ifndef OL_TEST_ENGINE_REQUESTS_H
#define OL_TEST_ENGINE_REQUESTS_H

#include "engine_util.h"

#include <unistd.h>

static const int32_t prompt[] = {1, 195, 123, 41, 77, 20, 99, 5};
#define N_PROMPT ((int)(sizeof(prompt) / sizeof(prompt[0])))

static ol_engine *engine;
static ol_error err;

static inline int open_default(void **state)
{
    ol_engine_options options;

    (void)state;
    if (access(golden_path("llama"), F_OK) != 0)
        return 0;
    options = util_options(golden_path("llama"));
    engine = util_open(&options);
    return 0;
}

static inline int close_default(void **state)
{
    (void)state;
    ol_engine_close(engine);
    engine = NULL;
    return 0;
}

static inline void need_engine(void)
{
    need_path(golden_path("llama"));
    assert_non_null(engine);
}

/* Runs one request alone; tag 0. */
static inline util_result run_one(ol_engine *e, const ol_request *q)
{
    util_result r = {0};

    util_submit(e, q);
    util_run(e, &r, 1);
    assert_true(r.done || r.failed);
    util_expect_idle(e);
    return r;
}

static inline util_result run_done(ol_engine *e, const ol_request *q)
{
    util_result r = run_one(e, q);

    if (r.failed)
        must(r.error.code, &r.error);
    return r;
}

static inline void refuse(ol_engine *e, const ol_request *q, ol_code code, const char *word)
{
    must_fail(ol_engine_submit(e, q, &err), code, word, &err);
    util_expect_idle(e);
}

static inline ol_text text_of(const char *s)
{
    return (ol_text){s, strlen(s)};
}

#endif
