/*
 * engine_store.h: for tests of how adapters come to an engine, stay and go: adapters as a host
 * keeps them, requests for them, and crowds of such requests, answered by a host that takes its
 * time.
 */
#ifndef TEST_ENGINE_STORE_H
#define TEST_ENGINE_STORE_H

#include "engine_util.h"

#define STORE_MODEL "llama"

enum { STORE_SIZE = 12, STORE_LARGE = 3, STORE_TOKENS = 120 };

typedef struct stored {
    ol_buf weights, config;
    ol_digest digest;
} stored;

/* The same weights, each with an alpha of its own. */
extern stored store[STORE_SIZE];
/* Of other sizes; empty, unless a test makes them. */
extern stored store_large[STORE_LARGE];
extern int32_t store_prompt[STORE_TOKENS]; /* random tokens */
extern ol_error store_error;               /* of the last call */

extern size_t store_bytes; /* on the device, of each of the first */

/* A group's setup and its end; where the fixtures are not here nothing is made. */
int store_make(void **state);
int store_free(void **state);

ol_engine_options store_options(void); /* skips the test where the fixtures are not here */
ol_engine *store_open(size_t adapter_bytes);
ol_code store_put(ol_engine *e, const stored *s);
void store_must_put(ol_engine *e, int i);
/* As a host does it, on the loader's thread; and what became of one. */
void store_offer(ol_engine *e, const stored *s);
bool store_offered(ol_engine *e, bool wait);
/* Of 8 tokens, for 8 more, by adapters first .. first + n - 1. */
ol_request store_request(uint64_t tag, int n, ol_adapter_use *uses, int first);

/* -- many at once ------------------------------------------------------------------------- */

enum { CROWD_MOST = 80 };

typedef struct crowd {
    int n;
    ol_adapter_use uses[CROWD_MOST][3];
    ol_request requests[CROWD_MOST]; /* tags 0 .. n - 1 */
} crowd;

/* n requests for up to `adapters` each, of up to `prompt` tokens for up to `tokens` more. */
void crowd_make(crowd *c, int n, int adapters, int prompt, int tokens);
/* All of them, submitted and answered in any order, by the loader's thread or at once. The results
 * are the caller's to free. Fails the test where the engine locks up. */
void crowd_run(ol_engine *e, const crowd *c, util_result *results, bool loader);
void crowd_check_same(const crowd *c, const util_result *have, const util_result *want);

#endif
