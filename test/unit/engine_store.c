/* engine_store.c: see engine_store.h. */
#include "engine_store.h"
#include "noise.h"

#include <poll.h>
#include <unistd.h>

stored store[STORE_SIZE], store_large[STORE_LARGE];
int32_t store_prompt[STORE_TOKENS];
ol_error store_error;
size_t store_bytes;

static size_t measure(void)
{
    ol_engine *e = store_open(0);
    ol_engine_info info;

    store_must_put(e, 0);
    ol_engine_info_get(e, &info);
    ol_engine_close(e);
    return info.adapter_bytes;
}

int store_make(void **state)
{
    (void)state;
    if (access(golden_path(STORE_MODEL), F_OK) != 0)
        return 0;
    for (int i = 0; i < STORE_SIZE; i++)
        util_make_adapter(STORE_MODEL, "a", 3 + i, &store[i].weights, &store[i].config,
                          &store[i].digest);
    for (int i = 0; i < STORE_TOKENS; i++)
        store_prompt[i] = 1 + pick(200);
    store_bytes = measure();
    return 0;
}

static void free_all(stored *all, int n)
{
    for (int i = 0; i < n; i++) {
        ol_buf_free(&all[i].weights);
        ol_buf_free(&all[i].config);
    }
}

int store_free(void **state)
{
    (void)state;
    free_all(store, STORE_SIZE);
    free_all(store_large, STORE_LARGE);
    return 0;
}

ol_engine_options store_options(void)
{
    need_path(golden_path(STORE_MODEL));
    return util_options(golden_path(STORE_MODEL));
}

ol_engine *store_open(size_t adapter_bytes)
{
    ol_engine_options options = store_options();

    options.adapter_bytes = adapter_bytes;
    return util_open(&options);
}

/* -- to the engine ------------------------------------------------------------------------ */

ol_code store_put(ol_engine *e, const stored *s)
{
    ol_adapter_bytes bytes = util_bytes(&s->weights, &s->config);
    ol_adapter_facts facts;

    return ol_engine_adapter_put(e, &s->digest, &bytes, &facts, &store_error);
}

void store_must_put(ol_engine *e, int i)
{
    must(store_put(e, &store[i]), &store_error);
}

void store_offer(ol_engine *e, const stored *s)
{
    ol_adapter_offer what = {
        .expected = s->digest, .weights_len = s->weights.len, .config_len = s->config.len};

    what.bytes = malloc(s->weights.len + s->config.len);
    assert_non_null(what.bytes);
    memcpy(what.bytes, s->weights.data, s->weights.len);
    memcpy(what.bytes + s->weights.len, s->config.data, s->config.len);
    must(ol_engine_adapter_offer(e, &what, &store_error), &store_error);
}

bool store_offered(ol_engine *e, bool wait)
{
    struct pollfd readable = {.fd = ol_engine_adapter_fd(e), .events = POLLIN};
    ol_adapter_result result;

    do {
        if (ol_engine_adapter_result(e, &result)) {
            free(result.offered);
            must(result.code, &result.error);
            return true;
        }
    } while (wait && poll(&readable, 1, -1) == 1);
    return false;
}

ol_request store_request(uint64_t tag, int n, ol_adapter_use *uses, int first)
{
    ol_request q = util_request(tag, store_prompt, 8, 8);

    for (int i = 0; i < n; i++)
        uses[i] = (ol_adapter_use){store[first + i].digest, 1.0f};
    q.adapters = uses;
    q.n_adapters = n;
    return q;
}
