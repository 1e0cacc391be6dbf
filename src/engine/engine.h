/*
 * engine.h: the inference engine. This header is its manual.
 *
 * The engine serves one base model on one device. It is single-threaded and
 * driven by its host: the host submits requests, calls ol_engine_step while there
 * is work, and takes events out with ol_engine_poll. It never blocks on anything
 * but the device's own work of one step, never prints, never exits; every error
 * is a value.
 *
 *     ol_engine_open(&options, &engine, &err);
 *     ol_engine_submit(engine, &request, &err);
 *     while (ol_engine_busy(engine)) {
 *         ol_engine_step(engine, &err);
 *         while (ol_engine_poll(engine, &event))
 *             ...
 *     }
 *     ol_engine_close(engine);
 *
 * A request that names adapters the engine does not hold yields an
 * OL_EVENT_NEED_ADAPTER event per missing digest and waits until
 * ol_engine_adapter_put brought all of them. Other requests go on meanwhile. Where
 * several requests miss one digest, one of them is asked, another when that takes too
 * long; and the budget of adapters may delay the event, or bring it again for what had
 * to go before it was used.
 *
 * Same request (prompt, adapters with weights, sampling with seed), same model,
 * same device: same tokens, whatever else is running (promise P6).
 */
#ifndef OL_ENGINE_H
#define OL_ENGINE_H

#include "base/status.h"
#include "device/device.h"
#include "engine/formats/adapter_bytes.h"
#include "engine/sampling.h"

typedef struct ol_engine ol_engine;

#define OL_MAX_REQUEST_ADAPTERS 16

#define OL_NO_COPIES SIZE_MAX

typedef struct ol_engine_options {
    const char *model_path; /* Hugging Face folder or GGUF file */
    const char *device_dir; /* where openlora_*.so lie */
    const char *device;     /* "auto", "cpu", "cuda:N" */
    const char *isa;        /* CPU: see ol_device_options; NULL: auto */
    int threads;            /* 0: one per core */
    ol_quantization quantization;
    /* How the device keeps adapters: AS_IS or INT8. */
    ol_quantization adapters;
    size_t memory_limit;     /* of the device, bytes; 0: none */
    size_t kv_bytes;         /* KV cache budget; 0: 512 MiB, less if the model needs less */
    size_t adapter_bytes;    /* adapter cache budget; 0: 1 GiB */
    size_t copy_bytes;       /* budget of copies of adapters in the host's memory; 0: 4 GiB if the
                              * device has memory of its own, else none; OL_NO_COPIES: none */
    size_t cache_bytes;      /* not 0: one pool for both; the two above are the most that each may
                              * take of it, 0: all */
    int context;             /* tokens per request at most; 0: the model's */
    int max_seqs;            /* running sequences; 0: 64; at most 7/8 of step_tokens */
    int step_tokens;         /* token rows per step; 0: 512 */
    int page_tokens;         /* 0: 16 */
    int max_queued;          /* requests beyond max_seqs; 0: 1000 */
    int step_ms;             /* how long a step with prompts in it may take while others
                              * generate; 0: 200. Only waiting depends on it */
    bool no_prefix_cache;    /* compute every prompt anew */
    bool host_sampling;      /* choose tokens on the host, even if the device could */
    int kv_dtype;            /* a plain ol_dtype, or -1: F32 for F32 models, else F16, else BF16 */
    ol_progress_fn progress; /* of loading, bytes; may be NULL */
    void *progress_context;
} ol_engine_options;

typedef struct ol_engine_info {
    char model_name[128];   /* last part of the path, or general.name */
    char architecture[32];  /* "llama", "mistral", "qwen2", "qwen3" */
    char format[64];        /* e.g. "safetensors BF16", "GGUF Q8_0" */
    ol_digest model_digest; /* SHA-256 over config and tensors, see formats/weights.h */
    int64_t parameters;
    int vocab, hidden, layers, context;
    bool has_tokenizer;
    ol_device_info device;
    int kv_pages, kv_pages_free, page_tokens; /* of a pool: those that they may be */
    int kv_pages_idle; /* of the free ones: with tokens that may be found again */
    int running, waiting;
    int adapters; /* resident */
    size_t adapter_bytes;
    uint64_t steps, prompt_tokens, generated_tokens, requests, failed, cancelled;
    uint64_t cached_tokens; /* of the prompts */
    uint64_t rows;          /* computed in all steps */
    uint64_t sequences;     /* sum over steps of the requests in each */
    uint64_t busy_us;       /* spent in steps */
    uint64_t preemptions, rejected;
    uint64_t adapter_loads, adapter_hits, adapter_evictions;
    int adapter_copies; /* in the host's memory */
    size_t adapter_copy_bytes;
    uint64_t adapter_copy_loads; /* of the loads: from there */
} ol_engine_info;

typedef enum ol_task {
    OL_TASK_GENERATE,
    OL_TASK_SCORE, /* log-probability of `completion` after the prompt */
} ol_task;

typedef struct ol_adapter_use {
    ol_digest digest;
    float weight;
} ol_adapter_use;

/* Constrained decoding: `allow` is asked before each token what may follow the output so far, and
 * sets bit t % 32 of mask[t / 32] for each token t that may: end-of-generation tokens, too. The
 * words, enough for the vocabulary, are zero before. Called within a step; it may call nothing of
 * the engine. */
typedef struct ol_constraint {
    void (*allow)(void *context, const int32_t *output, int n_output, uint32_t *mask);
    void *context; /* lives until the request has ended */
} ol_constraint;

typedef struct ol_request {
    uint64_t tag; /* the host's name for it; unique among live requests */
    ol_task task;
    /* The prompt, as text (tokenised here, BOS added if the tokenizer says so; special
     * tokens in the text are recognised when parse_special), or as token ids (taken as
     * they are) when prompt_tokens is not NULL. Copied. */
    ol_text prompt;
    bool parse_special;
    const int32_t *prompt_tokens;
    int n_prompt_tokens;
    bool quiet; /* nobody waits for single tokens: TOKEN events come together, the text of many
                 * with the last of them, and DONE brings most */
    ol_text completion; /* OL_TASK_SCORE; tokenised by itself, no BOS */
    const int32_t *completion_tokens;
    int n_completion_tokens;
    int n_adapters; /* <= OL_MAX_REQUEST_ADAPTERS, digests distinct */
    const ol_adapter_use *adapters;
    ol_sampling sampling;            /* copied, arrays too */
    const ol_constraint *constraint; /* OL_TASK_GENERATE: copied; NULL: none */
    uint32_t tenant;     /* whose it is: the engine's work is shared fairly between tenants */
    float tenant_weight; /* a tenant's part of the work; 0: 1 */
    int priority;        /* higher goes first, whoever's it is; -OL_MAX_PRIORITY .. */
    uint32_t timeout_ms; /* from now; then it fails with OL_CANCELLED. 0: none */
    /* Metering: the host's own record, <= OL_MAX_METER_BYTES, copied and not looked into. It
     * comes back in an OL_EVENT_USAGE when the request ends, however it ends, and now and then
     * before. Empty: no such event. */
    ol_text meter;
    ol_digest meter_salt; /* goes before the output's tokens into their digest */
} ol_request;

#define OL_MAX_METER_BYTES 4096

#define OL_MAX_PRIORITY 1000

typedef enum ol_finish {
    OL_FINISH_EOS,    /* an end-of-generation token (not part of the output) */
    OL_FINISH_STOP,   /* a stop string */
    OL_FINISH_LENGTH, /* max_tokens, or the context is full */
    OL_FINISH_SCORED,
} ol_finish;

static inline const char *ol_finish_name(ol_finish finish)
{
    static const char *const names[] = {"eos", "stop", "length", "scored"};

    return names[finish];
}

typedef enum ol_event_kind {
    OL_EVENT_TOKEN,
    OL_EVENT_NEED_ADAPTER,
    OL_EVENT_DONE,   /* last event of its tag */
    OL_EVENT_FAILED, /* last event of its tag */
    OL_EVENT_USAGE,  /* of a metered request; just before its last event, or after a cancel;
                      * with OL_OUTCOME_SO_FAR at any time before */
} ol_event_kind;

typedef enum ol_outcome {
    OL_OUTCOME_DONE,
    OL_OUTCOME_FAILED,
    OL_OUTCOME_CANCELLED,
    OL_OUTCOME_SO_FAR, /* it goes on */
} ol_outcome;

typedef struct ol_event {
    uint64_t tag;
    ol_event_kind kind;
    /* TOKEN: a generated token (or, for OL_TASK_SCORE, a scored one). text holds the
     * UTF-8 characters that it completes, possibly none; text that might begin a stop
     * string is held back until it is known. The texts of all TOKEN events and of DONE
     * (what was held back last) make the output. OL_TASK_SCORE yields TOKEN events only
     * when sampling.logprobs >= 0. */
    int index;
    int32_t token;
    ol_text text;
    float logprob; /* when logprobs >= 0, and always for OL_TASK_SCORE */
    int n_alternatives;
    const ol_token_logprob *alternatives; /* most likely first */
    /* NEED_ADAPTER; USAGE: SHA-256 over meter_salt and the output's tokens, 4 bytes each,
     * little-endian */
    ol_digest digest;
    /* USAGE: text is the meter; prompt_tokens (those that were computed or found),
     * cached_tokens, completion_tokens and shares as in DONE */
    ol_outcome outcome;
    /* DONE */
    ol_finish finish;
    int prompt_tokens, completion_tokens;
    int cached_tokens;  /* of the prompt: found computed, by an earlier request */
    double logprob_sum; /* of OL_TASK_SCORE */
    int n_shares;
    const double *shares; /* per adapter of the request, its part of the LoRA output
                           * energy; sum 1 (equal shares if the energy is 0) */
    uint64_t queue_us, prefill_us, decode_us;
    /* FAILED */
    ol_error error;
} ol_event;

/* Opens model and device, checks everything, loads the weights. */
ol_code ol_engine_open(const ol_engine_options *options, ol_engine **engine, ol_error *err);
void ol_engine_close(ol_engine *engine);
void ol_engine_info_get(ol_engine *engine, ol_engine_info *info);

/* Checks and queues a request. On failure nothing is kept and no event follows. */
ol_code ol_engine_submit(ol_engine *engine, const ol_request *request, ol_error *err);
/* Frees all of the request's resources before it returns; no event follows.
 * An unknown tag is no error (it may just have ended). */
void ol_engine_cancel(ol_engine *engine, uint64_t tag);

/* Facts of an adapter, from ol_engine_adapter_put or _check. */
typedef struct ol_adapter_facts {
    ol_digest digest;
    int max_rank;
    int n_modules; /* adapted (layer, module) pairs */
    int64_t parameters;
    size_t device_bytes;
    unsigned module_mask; /* bit ol_module */
} ol_adapter_facts;

/* Parses, validates against the base and loads an adapter. `expected` is the digest by which
 * requests name it: SHA-256 as ol_adapter_digest computes; other bytes are refused.
 * A failure fails the requests that wait for that digest, too; but not if the bytes
 * have another one (OL_INVALID, facts->digest zero): they say nothing about it, and the
 * host has to cancel the request that brought them. OL_OK does not promise that the
 * adapter stays: see ol_engine_adapter_has. */
ol_code ol_engine_adapter_put(ol_engine *engine, const ol_digest *expected,
                              const ol_adapter_bytes *bytes, ol_adapter_facts *facts,
                              ol_error *err);
/* The same checks without keeping anything. */
ol_code ol_engine_adapter_check(ol_engine *engine, const ol_adapter_bytes *bytes,
                                ol_adapter_facts *facts, ol_error *err);
/* The same two beside the steps: the bytes are read, checked and placed on a thread of their
 * own, one adapter after the other, and what came of it is fetched by
 * ol_engine_adapter_result. */
typedef struct ol_adapter_offer {
    uint64_t tag;       /* the host's, for the result */
    bool check;         /* as ol_engine_adapter_check, else as _put */
    ol_digest expected; /* unless check */
    uint8_t *bytes;     /* malloc'ed: weights, then config; the engine's from now on */
    size_t weights_len, config_len;
} ol_adapter_offer;

typedef struct ol_adapter_result {
    uint64_t tag;
    bool check;
    uint8_t *offered; /* the offer's bytes, the host's again: to free, or for the next offer */
    size_t bytes;     /* of them */
    ol_code code;
    ol_error error; /* when code is not OL_OK */
    ol_adapter_facts facts;
} ol_adapter_result;

/* On failure the bytes are freed, and no result follows. */
ol_code ol_engine_adapter_offer(ol_engine *engine, const ol_adapter_offer *offer, ol_error *err);
/* The next result, if any. To be asked for when the descriptor is readable, and between steps. */
bool ol_engine_adapter_result(ol_engine *engine, ol_adapter_result *result);
/* Readable while there is a result. */
int ol_engine_adapter_fd(const ol_engine *engine);

bool ol_engine_adapter_has(ol_engine *engine, const ol_digest *digest);

/* True while a step would do something. */
bool ol_engine_busy(const ol_engine *engine);
/* Milliseconds after which a step is due even if the engine is not busy, since a request
 * waits for an adapter and another host may have to be asked; -1: none. */
int ol_engine_patience_ms(const ol_engine *engine);
/* One step over the running sequences. Errors of a single request become its
 * OL_EVENT_FAILED; a returned error means that the device is unusable. */
ol_code ol_engine_step(ol_engine *engine, ol_error *err);
/* The next event, if any. What it points to lives until the next call into the engine. */
bool ol_engine_poll(ol_engine *engine, ol_event *event);

typedef struct ol_tokens {
    int32_t *ids; /* [n] */
    size_t n;
} ol_tokens;

/* tokens->ids is malloc'ed, the caller's. */
ol_code ol_engine_tokenize(ol_engine *engine, ol_text text, bool add_bos, bool parse_special,
                           ol_tokens *tokens, ol_error *err);
/* *text is malloc'ed (NUL-terminated), the caller's; valid UTF-8. */
ol_code ol_engine_detokenize(ol_engine *engine, const ol_tokens *tokens, bool skip_special,
                             char **text, size_t *len, ol_error *err);

/* Logits of every position of a text, for the command line and tests: float [n][vocab] into
 * out. Needs an idle engine. Adapters must be resident. */
typedef struct ol_whole_text {
    const int32_t *tokens; /* [n] */
    int n;
    int n_adapters;
    const ol_adapter_use *adapters;
} ol_whole_text;

ol_code ol_engine_logits(ol_engine *engine, const ol_whole_text *text, float *out, ol_error *err);

#endif
