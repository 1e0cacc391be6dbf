/*
 * adapter_trigger.c: what happens when a row of openlora.adapters is written.
 *
 * The trigger computes what describes the bytes (digest, size, format), so that no column
 * can lie about them, and has the engine validate them against the base model. Where there
 * is no engine to ask (a server without a model, or one that still loads it) a row is
 * taken after the checks of its outer form, with checked = false; the engine validates
 * before any use, whatever that column says.
 *
 * A restore must not depend on the model that happens to be served. So a row that the
 * tables' owner inserts with its digest is taken as it is, after that digest was found
 * right: that is what COPY from a dump does.
 */
#include "lora_pg.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "adapters.h"
#include "commands/trigger.h"
#include "engine_ask.h"
#include "executor/spi.h"
#include "shared.h"
#include "spi.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

PG_FUNCTION_INFO_V1(lora_adapter_trigger);

#define MAX_CONFIG (1024 * 1024)
#define MAX_NAME 200
#define MAX_COLUMNS 64

/* -- the row -------------------------------------------------------------------------- */

typedef struct Row {
    TupleDesc desc;
    HeapTuple old, tuple; /* old: NULL on INSERT */
    Datum values[MAX_COLUMNS];
    bool nulls[MAX_COLUMNS], replace[MAX_COLUMNS];
} Row;

static int column(const Row *row, const char *name)
{
    int number = SPI_fnumber(row->desc, name);

    if (number <= 0 || number > MAX_COLUMNS)
        elog(ERROR, "openlora.adapters has no column \"%s\"", name);
    return number;
}

static Datum get(const Row *row, const char *name, bool *is_null)
{
    return heap_getattr(row->tuple, column(row, name), row->desc, is_null);
}

static bool is_null(const Row *row, const char *name)
{
    bool null;

    (void)get(row, name, &null);
    return null;
}

static void set(Row *row, const char *name, Datum value, bool null)
{
    int at = column(row, name) - 1;

    row->values[at] = value;
    row->nulls[at] = null;
    row->replace[at] = true;
}

/* For a TOASTed value this compares pointers, which an UPDATE that does not touch the
 * column keeps. */
static bool same_as_old(const Row *row, const char *name)
{
    Form_pg_attribute attribute = TupleDescAttr(row->desc, column(row, name) - 1);
    bool null_new, null_old;
    Datum new_value = get(row, name, &null_new);
    Datum old_value = heap_getattr(row->old, column(row, name), row->desc, &null_old);

    if (null_new || null_old)
        return null_new == null_old;
    return datumIsEqual(new_value, old_value, attribute->attbyval, attribute->attlen);
}

static void keep_old(Row *row, const char *name)
{
    bool null;
    Datum value = heap_getattr(row->old, column(row, name), row->desc, &null);

    set(row, name, value, null);
}

/* -- checks ------------------------------------------------------------------------------ */

static void check_owner(const Row *row)
{
    bool null;
    Oid owner = DatumGetObjectId(get(row, "owner", &null)), old;

    if (null)
        return;     /* NOT NULL says it better */
    if (row->old) { /* whoever may manage it may not take it */
        old = DatumGetObjectId(heap_getattr(row->old, column(row, "owner"), row->desc, &null));
        if (!null && !has_privs_of_role(GetUserId(), old))
            ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                            errmsg("must be the owner of an adapter to give it away")));
    }
    if (has_privs_of_role(GetUserId(), owner))
        return;
    ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                    errmsg("must be a member of role \"%s\" to make it the owner of an adapter",
                           GetUserNameFromId(owner, true) ? GetUserNameFromId(owner, true)
                                                          : "(dropped)")));
}

static void check_config(struct varlena *config)
{
    Size size = toast_raw_datum_size(PointerGetDatum(config)) - VARHDRSZ;
    Jsonb *jsonb;

    if (size > MAX_CONFIG)
        ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
                        errmsg("the adapter's config is too large: %zu bytes", size),
                        errdetail("The limit is %d bytes.", MAX_CONFIG)));
    jsonb = DatumGetJsonbP(PointerGetDatum(config));
    if (!JB_ROOT_IS_OBJECT(jsonb))
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("the adapter's config is not an object"),
                        errhint("It is what PEFT writes to adapter_config.json.")));
}

/* Before the constraint of the table, which would show the whole row. */
static void check_name(const Row *row)
{
    bool null;
    Datum name = get(row, "name", &null);
    Size size = null ? 0 : toast_raw_datum_size(name) - VARHDRSZ;

    if (size > MAX_NAME)
        ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
                        errmsg("the adapter's name is too long: %zu bytes", size),
                        errdetail("The limit is %d bytes.", MAX_NAME)));
}

/* True when there is an engine that could be asked now; its model's digest. */
static bool engine_is_ready(ol_digest *model)
{
    bool ready;

    if (!lora_preloaded)
        return false;
    LWLockAcquire(lora_shared->lock, LW_SHARED);
    ready = lora_shared->engine == LORA_ENGINE_READY;
    *model = lora_shared->info.model_digest;
    LWLockRelease(lora_shared->lock);
    return ready;
}

static Datum bytea_of(const ol_digest *digest)
{
    bytea *bytes = palloc(VARHDRSZ + OL_DIGEST_BYTES);

    SET_VARSIZE(bytes, VARHDRSZ + OL_DIGEST_BYTES);
    memcpy(VARDATA(bytes), digest->bytes, OL_DIGEST_BYTES);
    return PointerGetDatum(bytes);
}

static void check_with_engine(Row *row, LoraAdapterReader *reader)
{
    ol_adapter_facts facts = {0};
    ol_digest model = {{0}};
    ol_error error;
    int good = engine_is_ready(&model) ? lora_check_adapter(reader, &facts, &error) : -1;

    if (good == 0)
        lora_raise(&error);
    set(row, "checked", BoolGetDatum(good == 1), false);
    set(row, "base_model", good == 1 ? bytea_of(&model) : (Datum)0, good != 1);
    set(row, "max_rank", Int32GetDatum(facts.max_rank), good != 1);
    set(row, "modules", Int32GetDatum(facts.n_modules), good != 1);
    set(row, "parameters", Int64GetDatum(facts.parameters), good != 1);
}

/* Whether a row that is inserted brings its own digest, which must then be right, and comes
 * from whom descriptions are believed. */
static bool is_restored(const Row *row, const ol_digest *digest)
{
    bool null;
    Datum given = get(row, "digest", &null);
    bytea *bytes;

    if (row->old || null)
        return false;
    bytes = DatumGetByteaPP(given);
    if (VARSIZE_ANY_EXHDR(bytes) != OL_DIGEST_BYTES ||
        memcmp(VARDATA_ANY(bytes), digest->bytes, OL_DIGEST_BYTES) != 0)
        ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
                        errmsg("an adapter's digest is not that of its weights and config"),
                        errhint("Leave the digest out to have it computed.")));
    return has_privs_of_role(GetUserId(), lora_tables_owner());
}

/* -- the trigger --------------------------------------------------------------------------- */

static void describe(Row *row)
{
    bool no_weights, no_config;
    Datum weights = get(row, "weights", &no_weights), config = get(row, "config", &no_config);
    LoraAdapterReader *reader;
    struct varlena *plain;
    const char *form;
    ol_digest digest;

    if (no_weights)
        ereport(ERROR, (errcode(ERRCODE_NOT_NULL_VIOLATION), errmsg("an adapter has no weights")));
    if (!no_config)
        check_config((struct varlena *)DatumGetPointer(config));
    reader = lora_adapter_over((struct varlena *)DatumGetPointer(weights),
                               no_config ? NULL : (struct varlena *)DatumGetPointer(config));
    form = lora_adapter_form(reader, !no_config);
    plain = lora_adapter_plain(reader);
    if (plain)
        set(row, "weights", PointerGetDatum(plain), false);
    lora_adapter_digest(reader, &digest);
    if (!is_restored(row, &digest))
        check_with_engine(row, reader);
    set(row, "format", CStringGetTextDatum(form), false);
    set(row, "digest", bytea_of(&digest), false);
    set(row, "bytes", Int64GetDatum((int64)lora_adapter_length(reader)), false);
    lora_adapter_close(reader);
}

/* An UPDATE of other columns. The description stays, but the owner may take the engine's
 * verdict away. */
static void keep_description(Row *row)
{
    static const char *const described[] = {"digest",   "bytes",   "format",     "checked",
                                            "max_rank", "modules", "parameters", "base_model"};
    bool null;
    bool unchecked = !DatumGetBool(get(row, "checked", &null)) && !null;

    for (size_t i = 0; i < lengthof(described); i++)
        keep_old(row, described[i]);
    if (unchecked) {
        set(row, "checked", BoolGetDatum(false), false);
        set(row, "base_model", (Datum)0, true);
    }
}

static void check_call(FunctionCallInfo fcinfo)
{
    TriggerData *trigger = (TriggerData *)fcinfo->context;

    if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
        !TRIGGER_FIRED_FOR_ROW(trigger->tg_event) || TRIGGER_FIRED_BY_DELETE(trigger->tg_event) ||
        strcmp(RelationGetRelationName(trigger->tg_relation), "adapters") != 0)
        ereport(ERROR,
                (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
                 errmsg("lora_adapter_trigger belongs to INSERT and UPDATE of openlora.adapters")));
}

Datum lora_adapter_trigger(PG_FUNCTION_ARGS)
{
    TriggerData *trigger = (TriggerData *)fcinfo->context;
    bool update;
    Row *row;

    check_call(fcinfo);
    update = TRIGGER_FIRED_BY_UPDATE(trigger->tg_event);
    row = palloc0(sizeof(*row));
    row->desc = RelationGetDescr(trigger->tg_relation);
    row->old = update ? trigger->tg_trigtuple : NULL;
    row->tuple = update ? trigger->tg_newtuple : trigger->tg_trigtuple;
    if (!update || !same_as_old(row, "owner"))
        check_owner(row);
    check_name(row);
    if (update && same_as_old(row, "weights") && same_as_old(row, "config") &&
        !is_null(row, "checked"))
        keep_description(row);
    else
        describe(row);
    return PointerGetDatum(
        heap_modify_tuple(row->tuple, row->desc, row->values, row->nulls, row->replace));
}
