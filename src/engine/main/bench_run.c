/*
 * bench_run.c: requests made up, and how long they take.
 *
 * Two figures, each over requests that all begin at once: prefill, the prompts alone (one
 * token of output each); decode, the output while all of the sequences run, after the
 * last prompt and before the first end. With adapters, runs with and without alternate.
 * With --requests a third: so many requests in all, of which `parallel` run at a time.
 */
#include "engine/main/bench.h"

#include <time.h>

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Prompts differ, so that nothing can be shared. */
static ol_code submit_one(bench *j, int i, int generate, bool adapted, ol_error *err)
{
    ol_adapter_use uses[OL_MAX_REQUEST_ADAPTERS];
    ol_request q = {.tag = j->next_tag++,
                    .prompt_tokens = j->tokens,
                    .n_prompt_tokens = j->prompt,
                    .adapters = uses,
                    .n_adapters = adapted ? j->combine : 0,
                    .sampling = ol_sampling_default()};

    for (int k = 0; k < j->prompt; k++) {
        j->noise = j->noise * 6364136223846793005u + 1442695040888963407u;
        j->tokens[k] = (int32_t)((j->noise >> 33) % (uint64_t)j->info.vocab);
    }
    for (int k = 0; k < q.n_adapters; k++)
        uses[k] = (ol_adapter_use){j->digests[(i + k) % j->adapters], 1.0f};
    q.sampling.max_tokens = generate;
    q.sampling.ignore_eos = true;
    return ol_engine_submit(j->engine, &q, err);
}

typedef struct progress {
    int tokens, begun, done;
} progress;

static ol_code one_step(bench *j, progress *p, ol_error *err)
{
    ol_event e;

    OL_TRY(ol_engine_step(j->engine, err));
    while (ol_engine_poll(j->engine, &e)) {
        if (e.kind == OL_EVENT_FAILED) {
            *err = e.error;
            return err->code;
        }
        p->tokens += e.kind == OL_EVENT_TOKEN;
        p->begun += e.kind == OL_EVENT_TOKEN && e.index == 0;
        p->done += e.kind == OL_EVENT_DONE;
    }
    return OL_OK;
}

static ol_code submit_all(bench *j, int n, int generate, bool adapted, ol_error *err)
{
    for (int i = 0; i < n; i++)
        OL_TRY(submit_one(j, i, generate, adapted, err));
    return OL_OK;
}

static ol_code run_prefill(bench *j, bool adapted, double *rate, ol_error *err)
{
    progress p = {0};
    double begin;

    OL_TRY(submit_all(j, j->parallel, 1, adapted, err));
    begin = now();
    while (p.done < j->parallel)
        OL_TRY(one_step(j, &p, err));
    *rate = (double)j->parallel * j->prompt / (now() - begin);
    return OL_OK;
}

static ol_code run_decode(bench *j, bool adapted, double *rate, ol_error *err)
{
    progress p = {0};
    double begin = 0, end = 0;
    int before = 0, counted = 0;

    *rate = 0;
    if (j->generate < 2)
        return OL_OK;
    OL_TRY(submit_all(j, j->parallel, j->generate, adapted, err));
    while (p.done < j->parallel) {
        OL_TRY(one_step(j, &p, err));
        if (p.begun < j->parallel)
            continue;
        if (begin == 0) {
            begin = now();
            before = p.tokens;
        } else if (counted == 0 || p.done == 0) {
            end = now();
            counted = p.tokens - before;
        }
    }
    if (counted)
        *rate = counted / (end - begin);
    return OL_OK;
}

static ol_code run_load(bench *j, bool adapted, double *rate, ol_error *err)
{
    progress p = {0};
    double begin = now();

    if (j->requests == 0)
        return OL_OK;
    OL_TRY(submit_all(j, j->requests, j->generate, adapted, err));
    while (p.done < j->requests)
        OL_TRY(one_step(j, &p, err));
    *rate = p.tokens / (now() - begin);
    return OL_OK;
}

static ol_code run_each(bench *j, bool adapted, bench_figures *f, int i, ol_error *err)
{
    OL_TRY(run_prefill(j, adapted, &f->prefill[i], err));
    OL_TRY(run_decode(j, adapted, &f->decode[i], err));
    return run_load(j, adapted, &f->load[i], err);
}

ol_code bench_run(bench *j, ol_error *err)
{
    double warm;

    OL_TRY(run_prefill(j, j->adapters > 0, &warm, err));
    for (int i = 0; i < j->repeats; i++) {
        OL_TRY(run_each(j, false, &j->without, i, err));
        if (j->adapters)
            OL_TRY(run_each(j, true, &j->with, i, err));
    }
    return OL_OK;
}
