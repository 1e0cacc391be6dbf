/* guc.c: the settings. What an application repeats are function arguments; these are
 * the DBA's. */
#include "lora_pg.h"

#include <limits.h>

#include "device/device.h"
#include "engine/engine.h"
#include "utils/guc.h"

char *lora_model;
char *lora_device;
char *lora_isa;
char *lora_engine_path;
char *lora_ledger_key_directory;
int lora_threads = 0;
int lora_kv_cache_size = 0;
int lora_adapter_cache_size = 0;
int lora_adapter_host_cache_size = -1;
int lora_cache_size = 0;
int lora_memory_limit = 0;
int lora_merge_memory = 4096;
int lora_context_length = 0;
int lora_max_sequences = 64;
int lora_step_tokens = 512;
int lora_max_queued = 1000;
int lora_max_adapter_size = 1024;
int lora_max_prompt_size = 1024;
int lora_restart_backoff_max = 30000;
int lora_max_retries = 2;
int lora_engine_timeout = 60000;
int lora_default_max_tokens = 128;
int lora_queue_workers = 4;
int lora_queue_concurrency = 64;
int lora_queue_max_attempts = 3;
int lora_queue_retention = 7 * 24 * 3600;
int lora_worker_idle_time = 2000;
double lora_tenant_weight = 1;
int lora_priority = 0;
int lora_step_time = 200;
bool lora_prefix_cache = true;
int lora_pipeline_depth = -1;
int lora_keep_text = LORA_KEEP_HASH;
bool lora_attribution = true;
int lora_receipt_durability = LORA_RECEIPTS_ASYNC;

/* Words that go to the engine as they are: engine_process.c. */
static int quantization = OL_QUANT_AS_IS, kv_dtype = -1, adapter_dtype = OL_QUANT_AS_IS;

static const struct config_enum_entry quantizations[] = {
    {"auto", OL_QUANT_AS_IS, false}, {"none", OL_QUANT_AS_IS, true}, {"int8", OL_QUANT_INT8, false},
    {"int4", OL_QUANT_INT4, false},  {"fp8", OL_QUANT_FP8, false},   {NULL, 0, false}};

static const struct config_enum_entry kv_dtypes[] = {
    {"auto", -1, false},      {"f32", OL_F32, false},    {"f16", OL_F16, false},
    {"bf16", OL_BF16, false}, {"fp8", OL_F8E4M3, false}, {NULL, 0, false}};

static const struct config_enum_entry adapter_dtypes[] = {
    {"auto", OL_QUANT_AS_IS, false}, {"int8", OL_QUANT_INT8, false}, {NULL, 0, false}};

static const struct config_enum_entry keep_texts[] = {{"none", LORA_KEEP_NOTHING, false},
                                                      {"hash", LORA_KEEP_HASH, false},
                                                      {"full", LORA_KEEP_FULL, false},
                                                      {NULL, 0, false}};

static const struct config_enum_entry durabilities[] = {
    {"async", LORA_RECEIPTS_ASYNC, false}, {"sync", LORA_RECEIPTS_SYNC, false}, {NULL, 0, false}};

/* None would be the root of the file system. */
static bool check_key_directory(char **value, void **extra, GucSource source)
{
    if (**value)
        return true;
    GUC_check_errdetail("It must name a folder.");
    return false;
}

/* Settings of the engine: a change restarts it. */
static void define_engine(void)
{
    DefineCustomStringVariable("openlora.model", "Base model to serve.",
                               "A Hugging Face folder or a GGUF file; empty serves none.",
                               &lora_model, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
    DefineCustomStringVariable("openlora.device", "Device that computes.", "auto, cpu or cuda:N.",
                               &lora_device, "auto", PGC_SIGHUP, 0, NULL, NULL, NULL);
    DefineCustomStringVariable("openlora.isa", "Best CPU instruction set to use.",
                               "auto, avx512, avxvnni, avx2 or portable.", &lora_isa, "auto",
                               PGC_SIGHUP, 0, NULL, NULL, NULL);
    DefineCustomStringVariable("openlora.engine_path", "Program that runs the model.",
                               "Empty: openlora-engine in PostgreSQL's library folder.",
                               &lora_engine_path, "", PGC_POSTMASTER, GUC_SUPERUSER_ONLY, NULL,
                               NULL, NULL);
    DefineCustomBoolVariable("openlora.prefix_cache",
                             "Find what earlier prompts with the same beginning have computed.",
                             NULL, &lora_prefix_cache, true, PGC_SIGHUP, 0, NULL, NULL, NULL);
    DefineCustomEnumVariable("openlora.quantization", "How base weights are stored.",
                             "auto keeps the file's type; fp8 is for GPUs.", &quantization,
                             OL_QUANT_AS_IS, quantizations, PGC_SIGHUP, 0, NULL, NULL, NULL);
    DefineCustomEnumVariable("openlora.kv_cache_dtype", "How keys and values are stored.",
                             "auto: f32 or f16 on CPUs, bf16 on GPUs. fp8, for GPUs, takes half as "
                             "much memory as bf16.",
                             &kv_dtype, -1, kv_dtypes, PGC_SIGHUP, 0, NULL, NULL, NULL);
    DefineCustomEnumVariable("openlora.adapter_dtype", "How loaded adapters are stored.",
                             "auto keeps an adapter's own type on CPUs, bf16 on GPUs. int8, with a "
                             "scale for each rank, takes half as much memory as 16 bits.",
                             &adapter_dtype, OL_QUANT_AS_IS, adapter_dtypes, PGC_SIGHUP, 0, NULL,
                             NULL, NULL);
}

typedef struct IntSetting {
    const char *name, *what, *more;
    int *value; /* its default, as it is initialised above */
    int low, high;
    GucContext context;
    int flags; /* its unit */
} IntSetting;

static const IntSetting ints[] = {
    /* the engine: a change restarts it */
    {"openlora.threads", "CPU threads of the engine.", "0: one per core.", &lora_threads, 0, 256,
     PGC_SIGHUP, 0},
    {"openlora.kv_cache_size", "Memory for keys and values.",
     "0: 512 MB, or less if the model needs less.", &lora_kv_cache_size, 0, MAX_KILOBYTES / 1024,
     PGC_SIGHUP, GUC_UNIT_MB},
    {"openlora.adapter_cache_size", "Memory for loaded adapters.", "0: 1 GB.",
     &lora_adapter_cache_size, 0, MAX_KILOBYTES / 1024, PGC_SIGHUP, GUC_UNIT_MB},
    {"openlora.adapter_host_cache_size",
     "The host's memory for adapters that a GPU may have to drop.",
     "-1: 4 GB with a GPU, none where the device computes in the host's memory. 0: none.",
     &lora_adapter_host_cache_size, -1, MAX_KILOBYTES / 1024, PGC_SIGHUP, GUC_UNIT_MB},
    {"openlora.cache_size", "Memory for keys, values and adapters together.",
     "What is given to openlora.kv_cache_size and openlora.adapter_cache_size then limits "
     "their parts of it. 0: each has its own.",
     &lora_cache_size, 0, MAX_KILOBYTES / 1024, PGC_SIGHUP, GUC_UNIT_MB},
    {"openlora.memory_limit", "Memory of the device for everything.", "0: no limit.",
     &lora_memory_limit, 0, MAX_KILOBYTES / 1024, PGC_SIGHUP, GUC_UNIT_MB},
    {"openlora.context_length", "Tokens of a request at most, prompt and answer.",
     "0: the model's.", &lora_context_length, 0, 1 << 24, PGC_SIGHUP, 0},
    {"openlora.max_sequences", "Requests that run at the same time.", NULL, &lora_max_sequences, 1,
     1024, PGC_SIGHUP, 0},
    {"openlora.step_tokens", "Tokens of one model step at most.", NULL, &lora_step_tokens, 16, 8192,
     PGC_SIGHUP, 0},
    {"openlora.max_queued", "Requests that may wait, beyond openlora.max_sequences.", NULL,
     &lora_max_queued, 1, 1000000, PGC_SIGHUP, 0},
    {"openlora.step_time", "How long a step with prompts in it may take while others generate.",
     NULL, &lora_step_time, 1, 3600 * 1000, PGC_SIGHUP, GUC_UNIT_MS},
    /* requests, adapters, merges */
    {"openlora.priority", "Requests of a higher priority go first.", NULL, &lora_priority,
     -OL_MAX_PRIORITY, OL_MAX_PRIORITY, PGC_SUSET, 0},
    {"openlora.merge_memory", "Memory that a merge of adapters may take.",
     "0: no limit. It is computed in a process of its own.", &lora_merge_memory, 0,
     MAX_KILOBYTES / 1024, PGC_SUSET, GUC_UNIT_MB},
    {"openlora.max_adapter_size", "Size of an adapter at most.", NULL, &lora_max_adapter_size, 1,
     1024, PGC_SIGHUP, GUC_UNIT_MB},
    {"openlora.max_prompt_size", "Size of a prompt at most.", NULL, &lora_max_prompt_size, 1,
     16 * 1024, PGC_SUSET, GUC_UNIT_KB},
    {"openlora.restart_backoff_max", "Longest pause before the engine is started again.", NULL,
     &lora_restart_backoff_max, 100, 3600 * 1000, PGC_SIGHUP, GUC_UNIT_MS},
    {"openlora.max_retries", "How often a call is tried again when the engine is lost.", NULL,
     &lora_max_retries, 0, 100, PGC_USERSET, 0},
    {"openlora.engine_timeout", "How long a call waits for an engine that is starting.", NULL,
     &lora_engine_timeout, 0, 3600 * 1000, PGC_USERSET, GUC_UNIT_MS},
    {"openlora.default_max_tokens", "Length of an answer when max_tokens is not given.", NULL,
     &lora_default_max_tokens, 1, 1 << 20, PGC_USERSET, 0},
    {"openlora.pipeline_depth", "Calls that one scan keeps in flight.",
     "-1: as many as fill the engine; 0: one call after the other.", &lora_pipeline_depth, -1,
     LORA_MAX_PIPELINE_DEPTH, PGC_USERSET, 0},
    /* the queue, and workers of one database */
    {"openlora.queue_workers", "Databases whose queues of requests are worked on at the same time.",
     "0: queues stand still.", &lora_queue_workers, 0, 1000, PGC_SIGHUP, 0},
    {"openlora.queue_concurrency", "Queued requests of a database that run together.", NULL,
     &lora_queue_concurrency, 1, 1024, PGC_SIGHUP, 0},
    {"openlora.queue_max_attempts", "How often a queued request is begun before it is given up.",
     "The last attempt is made alone.", &lora_queue_max_attempts, 2, 100, PGC_SIGHUP, 0},
    {"openlora.queue_retention", "How long ended requests are kept in the queue.", "-1: for ever.",
     &lora_queue_retention, -1, PG_INT32_MAX, PGC_SIGHUP, GUC_UNIT_S},
    {"openlora.worker_idle_time",
     "How long a worker of a database stays when it has nothing to do.",
     "DROP DATABASE waits for it.", &lora_worker_idle_time, 0, 3600 * 1000, PGC_SIGHUP,
     GUC_UNIT_MS},
};

static void define_ints(void)
{
    for (int i = 0; i < lengthof(ints); i++)
        DefineCustomIntVariable(ints[i].name, ints[i].what, ints[i].more, ints[i].value,
                                *ints[i].value, ints[i].low, ints[i].high, ints[i].context,
                                ints[i].flags, NULL, NULL, NULL);
}

/* The DBA's, for one role or database: ALTER ROLE ... SET. */
static void define_sharing(void)
{
    DefineCustomRealVariable("openlora.tenant_weight",
                             "A role's part of the engine's work, against other roles'.", NULL,
                             &lora_tenant_weight, 1, 0.001, 1000, PGC_SUSET, 0, NULL, NULL, NULL);
}

static void define_attribution(void)
{
    DefineCustomBoolVariable("openlora.attribution", "Whether answers are attributed and metered.",
                             "Off, nothing is written: then a hot standby answers, too.",
                             &lora_attribution, true, PGC_SUSET, 0, NULL, NULL, NULL);
    DefineCustomEnumVariable("openlora.keep_text", "What is kept of prompts and answers.",
                             "none: nothing; hash: the salt of the receipt's digests; full: the "
                             "texts, too, in openlora.inference_texts.",
                             &lora_keep_text, LORA_KEEP_HASH, keep_texts, PGC_SUSET, 0, NULL, NULL,
                             NULL);
    DefineCustomStringVariable("openlora.ledger_key_directory", "Folder of the ledger's keys.",
                               "Relative to the data directory, unless it begins with a slash.",
                               &lora_ledger_key_directory, "openlora_keys", PGC_POSTMASTER,
                               GUC_SUPERUSER_ONLY, check_key_directory, NULL, NULL);
    DefineCustomEnumVariable("openlora.receipt_durability",
                             "What a crash of the server may lose of receipts.",
                             "async: those of the last moment; sync: none unnoticed: no token of "
                             "an answer leaves before its request is on disk.",
                             &lora_receipt_durability, LORA_RECEIPTS_ASYNC, durabilities, PGC_SUSET,
                             0, NULL, NULL, NULL);
}

void lora_define_settings(void)
{
    define_engine();
    define_ints();
    define_sharing();
    define_attribution();
#if PG_VERSION_NUM >= 150000
    MarkGUCPrefixReserved("openlora");
#else
    EmitWarningsOnPlaceholders("openlora");
#endif
}
