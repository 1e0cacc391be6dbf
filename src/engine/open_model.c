/* open_model.c: the weights on the device, their digest, and the tokens that come with them. */
#include "engine/engine_internal.h"

#include "engine/vocab.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

/* -- weights, and their digest -------------------------------------------------------------- */

/* Loading reads the weights twice: to place them, and, on a thread of its own, for their digest:
 * one processor makes 2 GB of it a second, and it is of what is served, whatever a file's times
 * say. */
typedef struct digesting {
    ol_model_source *source;
    pthread_t thread;
    _Atomic size_t done;
    ol_digest digest;
    ol_code code;
    ol_error error;
} digesting;

static void note_digested(void *context, size_t done, size_t total)
{
    digesting *d = context;

    (void)total;
    d->done = done;
}

static void *run_digest(void *context)
{
    digesting *d = context;

    d->code = ol_model_source_digest(d->source, note_digested, d, &d->digest, &d->error);
    return NULL;
}

/* Signals are the engine thread's. Without a thread it is made here and now. */
static bool start_digest(digesting *d)
{
    sigset_t all, before;
    bool started;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    started = pthread_create(&d->thread, NULL, run_digest, d) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!started)
        (void)run_digest(d);
    return started;
}

typedef struct stage {
    const ol_engine_options *options;
    size_t total;
    digesting *digest;
} stage;

static void tell_progress(void *context, size_t done, size_t total)
{
    const stage *s = context;

    (void)total;
    if (s->options->progress)
        s->options->progress(s->options->progress_context, s->digest->done + done, s->total);
}

static ol_code place_weights(ol_engine *engine, const ol_engine_options *o, ol_error *err)
{
    size_t bytes = ol_model_source_bytes(engine->source);
    digesting digest = {.source = engine->source};
    stage s = {.options = o, .total = 2 * bytes, .digest = &digest};
    ol_model_options how = {.table = engine->table,
                            .device = engine->device,
                            .quantization = o->quantization,
                            .progress = tell_progress,
                            .progress_context = &s};
    bool threaded;
    ol_code code;

    threaded = start_digest(&digest);
    code = ol_model_load(engine->source, &how, &engine->model, err);
    if (threaded)
        (void)pthread_join(digest.thread, NULL);
    if (code != OL_OK)
        return code;
    if (digest.code != OL_OK) {
        *err = digest.error;
        return digest.code;
    }
    engine->digest = digest.digest;
    tell_progress(&s, bytes, bytes);
    return OL_OK;
}

/* -- tokens ---------------------------------------------------------------------------------- */

static void add_eos(ol_engine *engine, int32_t token)
{
    if (token >= 0 && token < engine->config->vocab)
        engine->eos[token >> 6] |= (uint64_t)1 << (token & 63);
}

/* What ends a generation: by the tokenizer and by the configuration. */
static ol_code make_eos(ol_engine *engine, ol_error *err)
{
    size_t words = ((size_t)engine->config->vocab + 63) / 64, n = 0;
    const int32_t *ids = engine->tok ? ol_tokenizer_eog(engine->tok, &n) : NULL;

    engine->eos = calloc(words, sizeof(uint64_t));
    if (!engine->eos)
        return ol_fail_nomem(err, words * sizeof(uint64_t), "the engine");
    for (size_t i = 0; i < n; i++)
        add_eos(engine, ids[i]);
    for (int i = 0; i < engine->config->n_eos; i++)
        add_eos(engine, engine->config->eos[i]);
    return OL_OK;
}

ol_code open_model(ol_engine *engine, const ol_engine_options *o, ol_error *err)
{
    OL_TRY(ol_model_source_check(engine->source, NULL, NULL, err));
    OL_TRY(ol_vocab_of_model(engine->source, &engine->tok, err));
    OL_TRY(make_eos(engine, err));
    return place_weights(engine, o, err);
}
