/*
 * adapter_trigger.c: what happens when a row of openlora.adapters is written.
 *
 * The trigger computes what describes the bytes (digest, size, format), so that no
 * column can lie about them, and has the engine validate them against the base model.
 * Without an engine (a restore, a server without a model) a row is taken after checks
 * of its outer form, with checked = false; the engine validates before any use.
 */
#include "lora_pg.h"

#include "access/htup_details.h"
#include "adapters.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "request.h"
#include "shared.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/jsonb.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(lora_adapter_trigger);

#define DEFAULT_LIMIT_MB 1024

static Size size_limit(void)
{
    return (Size)(lora_preloaded ? lora_max_adapter_size : DEFAULT_LIMIT_MB) * 1024 * 1024;
}

/* -- the row -------------------------------------------------------------------------------- */

typedef struct Row {
    TupleDesc desc;
    HeapTuple old, tuple;
    Datum values[64];
    bool nulls[64], replace[64];
} Row;

static int column(const Row *row, const char *name)
{
    int number = SPI_fnumber(row->desc, name);

    if (number <= 0 || number > 64)
        elog(ERROR, "openlora.adapters has no column \"%s\"", name);
    return number;
}

static Datum get(const Row *row, const char *name, bool *is_null)
{
    return heap_getattr(row->tuple, column(row, name), row->desc, is_null);
}

static void set(Row *row, const char *name, Datum value, bool is_null)
{
    int at = column(row, name) - 1;

    row->values[at] = value;
    row->nulls[at] = is_null;
    row->replace[at] = true;
}

/* The same bytes: for a TOASTed value, the same pointer, which an UPDATE that does not
 * touch the column keeps. */
static bool same_as_old(const Row *row, const char *name)
{
    bool null_new, null_old;
    Datum new_value = get(row, name, &null_new);
    Datum old_value = heap_getattr(row->old, column(row, name), row->desc, &null_old);

    if (null_new || null_old)
        return null_new == null_old;
    return datumIsEqual(new_value, old_value, false, -1);
}

static void keep_old(Row *row, const char *name)
{
    bool is_null;
    Datum value = heap_getattr(row->old, column(row, name), row->desc, &is_null);

    set(row, name, value, is_null);
}

/* -- checks ------------------------------------------------------------------------------------ */

static void check_owner(const Row *row)
{
    bool is_null;
    Datum owner = get(row, "owner", &is_null);
    Oid role;

    if (is_null)
        return; /* NOT NULL says it better */
    role = get_role_oid(NameStr(*DatumGetName(owner)), false);
    if (!has_privs_of_role(GetUserId(), role))
        ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                        errmsg("must be a member of role \"%s\" to make it the owner of an adapter",
                               NameStr(*DatumGetName(owner)))));
}

static void refuse_pickle(const char *head, Size n)
{
    bool zip = n >= 4 && memcmp(head, "PK\3\4", 4) == 0;
    bool pickle =
        n >= 2 && (uint8)head[0] == 0x80 && (uint8)head[1] <= 5 && !(n >= 9 && head[8] == '{');

    if (zip || pickle)
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("the adapter is a pickle, which can run code when it is read"),
                        errhint("Save it as safetensors: model.save_pretrained(path, "
                                "safe_serialization=True).")));
}

/* The outer form, as far as a few bytes tell. */
static const char *check_form(LoraAdapterReader *reader, bool has_config)
{
    char head[16];
    uint64 header = 0;
    Size length = lora_adapter_length(reader), n;

    if (length > size_limit())
        ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
                        errmsg("the adapter is too large: %zu bytes", length),
                        errdetail("The limit is %zu bytes.", size_limit()),
                        errhint("Raise openlora.max_adapter_size.")));
    n = lora_adapter_read(reader, head, sizeof(head));
    lora_adapter_rewind(reader);
    refuse_pickle(head, n);
    if (n >= 4 && memcmp(head, "GGUF", 4) == 0)
        return "gguf";
    if (n >= 9)
        memcpy(&header, head, 8);
    if (n < 10 || header > length - 8 || head[8] != '{')
        ereport(ERROR, (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
                        errmsg("the adapter's weights are neither safetensors nor GGUF")));
    if (!has_config)
        ereport(ERROR,
                (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("the adapter has no config"),
                 errhint("Safetensors weights need PEFT's adapter_config.json.")));
    return "peft";
}

static bool engine_is_ready(void)
{
    bool ready;

    if (!lora_preloaded)
        return false;
    LWLockAcquire(lora_shared->lock, LW_SHARED);
    ready = lora_shared->engine == LORA_ENGINE_READY;
    LWLockRelease(lora_shared->lock);
    return ready;
}

static void check_with_engine(Row *row, LoraAdapterReader *reader)
{
    ol_adapter_facts facts = {0};
    ol_error error;
    int good = engine_is_ready() ? lora_check_adapter(reader, &facts, &error) : -1;

    if (good == 0)
        lora_raise(&error);
    set(row, "checked", BoolGetDatum(good == 1), false);
    set(row, "max_rank", Int32GetDatum(facts.max_rank), good != 1);
    set(row, "modules", Int32GetDatum(facts.n_modules), good != 1);
    set(row, "parameters", Int64GetDatum(facts.parameters), good != 1);
}

/* -- the trigger
 * ------------------------------------------------------------------------------------ */

static void describe(Row *row)
{
    bool no_weights, no_config;
    Datum weights = get(row, "weights", &no_weights), config = get(row, "config", &no_config);
    char *config_text = NULL;
    LoraAdapterReader *reader;
    ol_digest digest;
    bytea *stored = palloc(VARHDRSZ + OL_DIGEST_BYTES);

    if (no_weights)
        ereport(ERROR, (errcode(ERRCODE_NOT_NULL_VIOLATION), errmsg("an adapter has no weights")));
    if (!no_config) {
        Jsonb *jsonb = DatumGetJsonbP(config);

        config_text = JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));
    }
    reader = lora_adapter_over((struct varlena *)DatumGetPointer(weights), config_text);
    set(row, "format", CStringGetTextDatum(check_form(reader, !no_config)), false);
    lora_adapter_digest(reader, &digest);
    SET_VARSIZE(stored, VARHDRSZ + OL_DIGEST_BYTES);
    memcpy(VARDATA(stored), digest.bytes, OL_DIGEST_BYTES);
    set(row, "digest", PointerGetDatum(stored), false);
    set(row, "bytes", Int64GetDatum((int64)lora_adapter_length(reader)), false);
    check_with_engine(row, reader);
    lora_adapter_close(reader);
}

Datum lora_adapter_trigger(PG_FUNCTION_ARGS)
{
    static const char *const described[] = {"digest",  "bytes",    "format",    "checked",
                                            "modules", "max_rank", "parameters"};
    TriggerData *trigger = (TriggerData *)fcinfo->context;
    bool update;
    Row *row;

    if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
        !TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
        elog(ERROR, "lora_adapter_trigger is a row trigger, before insert or update");
    update = TRIGGER_FIRED_BY_UPDATE(trigger->tg_event);
    row = palloc0(sizeof(*row));
    row->desc = RelationGetDescr(trigger->tg_relation);
    row->old = update ? trigger->tg_trigtuple : NULL;
    row->tuple = update ? trigger->tg_newtuple : trigger->tg_trigtuple;
    if (!update || !same_as_old(row, "owner"))
        check_owner(row);
    if (update && same_as_old(row, "weights") && same_as_old(row, "config")) {
        for (size_t i = 0; i < lengthof(described); i++)
            keep_old(row, described[i]);
    } else {
        describe(row);
    }
    return PointerGetDatum(
        heap_modify_tuple(row->tuple, row->desc, row->values, row->nulls, row->replace));
}
