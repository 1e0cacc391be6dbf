/* receipt.c: see receipt.h. */
#include "receipt.h"

#include "attribution.h"
#include "catalog/namespace.h"
#include "commands/sequence.h"
#include "shared.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

StaticAssertDecl(sizeof(LoraMeter) <= OL_MAX_METER_BYTES, "a meter does not fit a request");

/* -- in the backend ----------------------------------------------------------------------- */

int64 lora_next_inference(void)
{
    Oid space = get_namespace_oid("openlora", false);
    Oid sequence = get_relname_relid("inferences_id_seq", space);

    if (!OidIsValid(sequence))
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
                        errmsg("sequence openlora.inferences_id_seq does not exist")));
    return nextval_internal(sequence, false);
}

void lora_make_salt(ol_digest *salt)
{
    if (!pg_strong_random(salt->bytes, sizeof(salt->bytes)))
        ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate a salt")));
}

/* Of the salt, and what follows it. */
static void digest(const ol_digest *salt, const LoraSpec *spec, ol_digest *digest)
{
    ol_sha256 *sha = ol_sha256_begin();

    if (!sha)
        ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
    ol_sha256_add(sha, salt->bytes, sizeof(salt->bytes));
    if (spec) {
        ol_sha256_add(sha, spec->prompt, spec->prompt_len);
        ol_sha256_add(sha, spec->completion, spec->completion_len);
    }
    ol_sha256_end(sha, digest);
}

static void fill_sampling(LoraMeter *meter, const ol_sampling *s)
{
    meter->temperature = s->temperature;
    meter->top_k = s->top_k;
    meter->top_p = s->top_p;
    meter->min_p = s->min_p;
    meter->repetition_penalty = s->repetition_penalty;
    meter->presence_penalty = s->presence_penalty;
    meter->frequency_penalty = s->frequency_penalty;
    meter->max_tokens = s->max_tokens;
    meter->ignore_eos = s->ignore_eos;
    meter->seed = s->seed;
}

void lora_meter_fill(LoraMeter *meter, const LoraSpec *spec, const LoraResult *result, int attempt)
{
    memset(meter, 0, sizeof(*meter));
    meter->magic = LORA_METER_MAGIC;
    meter->database = MyDatabaseId;
    meter->role = GetUserId();
    namestrcpy(&meter->role_name, GetUserNameFromId(meter->role, false));
    meter->attempt = attempt;
    meter->inference = result->inference;
    digest(&result->salt, spec, &meter->prompt);
    digest(&result->salt, NULL, &meter->nothing);
    meter->task = spec->task;
    fill_sampling(meter, &spec->sampling);
    meter->n_adapters = spec->n_adapters;
    for (int i = 0; i < spec->n_adapters; i++) {
        meter->adapter_ids[i] = spec->adapters[i].id;
        meter->weights[i] = spec->adapters[i].weight;
        meter->adapters[i] = spec->adapters[i].digest;
    }
}

/* -- what is used ---------------------------------------------------------------------------- */

bool lora_meter_is_sound(const LoraMeter *meter)
{
    return meter->magic == LORA_METER_MAGIC && OidIsValid(meter->database) &&
           meter->inference > 0 && meter->attempt >= 0 && meter->n_adapters >= 0 &&
           meter->n_adapters <= OL_MAX_REQUEST_ADAPTERS &&
           memchr(NameStr(meter->role_name), '\0', NAMEDATALEN) != NULL;
}

/* What the table's constraints and the entry's readers take for granted, too. */
bool lora_receipt_is_sound(const LoraReceipt *r)
{
    return lora_meter_is_sound(&r->meter) && r->outcome >= OL_OUTCOME_DONE &&
           r->outcome <= LORA_OUTCOME_ANNOUNCED && r->input_tokens >= 0 && r->cached_tokens >= 0 &&
           r->cached_tokens <= r->input_tokens && r->output_tokens >= 0 &&
           (r->meter.task == OL_TASK_SCORE || r->output_tokens <= r->meter.max_tokens) &&
           memchr(r->device, '\0', sizeof(r->device)) != NULL;
}

void lora_receipt_begin(const LoraMeter *meter, int outcome, LoraReceipt *receipt)
{
    memset(receipt, 0, sizeof(*receipt));
    receipt->meter = *meter;
    receipt->at = GetCurrentTimestamp();
    receipt->outcome = outcome;
    receipt->output = meter->nothing;
    LWLockAcquire(lora_shared->lock, LW_SHARED);
    receipt->base_model = lora_shared->info.model_digest;
    strlcpy(receipt->device, lora_shared->info.device.description, sizeof(receipt->device));
    LWLockRelease(lora_shared->lock);
}

bool lora_receipt_report(LoraReceipt *receipt, ol_reader *r)
{
    ol_wire_event_scratch scratch;
    int64 parts[OL_MAX_REQUEST_ADAPTERS];
    ol_event e;

    if (!ol_wire_get_usage(r, &scratch, &e) || e.n_shares != receipt->meter.n_adapters)
        return false;
    receipt->at = GetCurrentTimestamp();
    receipt->outcome = e.outcome;
    receipt->input_tokens = e.prompt_tokens;
    receipt->cached_tokens = e.cached_tokens;
    receipt->output_tokens = e.completion_tokens;
    receipt->output = e.digest;
    lora_split_shares(e.n_shares, scratch.shares, parts);
    for (int i = 0; i < e.n_shares; i++)
        receipt->shares[i] = (int32)parts[i];
    return lora_receipt_is_sound(receipt);
}
