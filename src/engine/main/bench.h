/* bench.h: what the command `bench` was asked for, and what it has measured. */
#ifndef OL_MAIN_BENCH_H
#define OL_MAIN_BENCH_H

#include "engine/engine.h"

#define BENCH_MAX_REPEATS 100

typedef struct bench_figures {
    double prefill[BENCH_MAX_REPEATS], decode[BENCH_MAX_REPEATS]; /* tokens per second */
    double load[BENCH_MAX_REPEATS];                               /* of output, over all requests */
} bench_figures;

typedef struct bench {
    ol_engine_options how;
    int prompt, generate, parallel, adapters, rank, combine, requests, repeats;
    const char *write_adapters;
    bool json;
    ol_engine *engine;
    ol_engine_info info;
    ol_digest *digests; /* [adapters] */
    int32_t *tokens;    /* [prompt] */
    uint64_t next_tag, noise;
    bench_figures with, without;
} bench;

/* All repeats, with and without adapters in turns; an engine is open, and has the adapters. */
ol_code bench_run(bench *j, ol_error *err);

#endif
