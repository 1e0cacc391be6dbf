/*
 * adapter_form.c: the outer form of an adapter: see adapters.h.
 *
 * What can be checked without an engine, so that a truncated or foreign file is refused
 * even where no model is served: sizes, the header of safetensors as JSON, and that every
 * tensor lies within the bytes that follow it. Shapes, names and the base are the engine's.
 */
#include "adapters.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

#define MAX_HEADER (Size)(16 * 1024 * 1024) /* of safetensors; a hundred thousand tensors */

static void refuse_size(Size length)
{
    if (length > lora_adapter_size_limit())
        ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
                        errmsg("the adapter is too large: %zu bytes", length),
                        errdetail("The limit is %zu bytes.", lora_adapter_size_limit()),
                        errhint("Raise openlora.max_adapter_size.")));
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

static void refuse_header(const char *detail)
{
    ereport(ERROR, (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
                    errmsg("the adapter's weights are not a whole safetensors file"),
                    errdetail("%s", detail)));
}

/* -- safetensors -------------------------------------------------------------------------- */

static int64 offset_at(JsonbContainer *array, uint32 i)
{
    JsonbValue *value = getIthJsonbValueFromContainer(array, i);
    Datum number;

    if (!value || value->type != jbvNumeric)
        return -1;
    number = NumericGetDatum(value->val.numeric);
    /* beyond int8 there are no bytes either */
    if (DatumGetFloat8(DirectFunctionCall1(numeric_float8, number)) > 1e15)
        return -1;
    return DatumGetInt64(DirectFunctionCall1(numeric_int8, number));
}

/* One member of the header: {"dtype": .., "shape": [..], "data_offsets": [from, to]}. */
static void check_tensor(const char *name, JsonbValue *tensor, Size data)
{
    JsonbValue *offsets = NULL;
    int64 from = -1, to = -1;

    if (tensor->type == jbvBinary && JsonContainerIsObject(tensor->val.binary.data))
        offsets = getKeyJsonValueFromContainer(tensor->val.binary.data, "data_offsets",
                                               strlen("data_offsets"), NULL);
    if (offsets && offsets->type == jbvBinary && JsonContainerIsArray(offsets->val.binary.data)) {
        from = offset_at(offsets->val.binary.data, 0);
        to = offset_at(offsets->val.binary.data, 1);
    }
    if (from < 0 || to < from)
        refuse_header(psprintf("Tensor \"%s\" has no data_offsets.", name));
    if ((uint64)to > data)
        refuse_header(psprintf("Tensor \"%s\" ends at byte " INT64_FORMAT
                               " of %zu: the file is truncated.",
                               name, to, data));
}

static void check_tensors(Jsonb *header, Size data)
{
    JsonbIterator *it = JsonbIteratorInit(&header->root);
    JsonbIteratorToken token;
    JsonbValue value;
    char *name = NULL;

    if (!JB_ROOT_IS_OBJECT(header))
        refuse_header("The header is not an object.");
    while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE) {
        if (token == WJB_KEY)
            name = pnstrdup(value.val.string.val, value.val.string.len);
        else if (token == WJB_VALUE && strcmp(name, "__metadata__") != 0)
            check_tensor(name, &value, data);
    }
}

static void explain_header(void *arg)
{
    errcontext("header of the adapter's safetensors weights");
}

static void check_safetensors(LoraAdapterReader *reader)
{
    ErrorContextCallback context = {.callback = explain_header, .previous = error_context_stack};
    char prefix[8], *text;
    Size length = lora_adapter_length(reader);
    uint64 header = 0;

    (void)lora_adapter_read(reader, prefix, sizeof(prefix));
    for (int i = 7; i >= 0; i--)
        header = header << 8 | (uint8)prefix[i];
    if (header > length - 8)
        refuse_header(
            psprintf("The header is " UINT64_FORMAT " bytes long, the file %zu.", header, length));
    if (header > MAX_HEADER)
        refuse_header(psprintf("The header is " UINT64_FORMAT " bytes long.", header));
    text = palloc(header + 1);
    (void)lora_adapter_read(reader, text, header);
    text[header] = '\0';
    if (strlen(text) != header || !pg_verify_mbstr(PG_UTF8, text, (int)header, true))
        refuse_header("The header is not UTF-8 text.");
    error_context_stack = &context;
    text = pg_any_to_server(text, (int)header, PG_UTF8);
    check_tensors(DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text))),
                  length - 8 - header);
    error_context_stack = context.previous;
}

/* -- the whole ------------------------------------------------------------------------------ */

const char *lora_adapter_form(LoraAdapterReader *reader, bool has_config)
{
    char head[16];
    Size length = lora_adapter_length(reader), n;

    refuse_size(length);
    lora_adapter_rewind(reader);
    n = lora_adapter_read(reader, head, sizeof(head));
    lora_adapter_rewind(reader);
    refuse_pickle(head, n);
    if (n >= 4 && memcmp(head, "GGUF", 4) == 0)
        return "gguf";
    if (n < 10 || head[8] != '{')
        ereport(ERROR, (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
                        errmsg("the adapter's weights are neither safetensors nor GGUF")));
    if (!has_config)
        ereport(ERROR,
                (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("the adapter has no config"),
                 errhint("Safetensors weights need PEFT's adapter_config.json.")));
    check_safetensors(reader);
    lora_adapter_rewind(reader);
    return "peft";
}
