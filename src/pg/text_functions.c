/* text_functions.c: lora_tokenize, lora_detokenize and lora_count_tokens. */
#include "lora_pg.h"

#include "catalog/pg_type.h"
#include "engine_ask.h"
#include "utf8.h"
#include "utils/array.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(lora_tokenize);
PG_FUNCTION_INFO_V1(lora_detokenize);
PG_FUNCTION_INFO_V1(lora_count_tokens);

/* Ids as u32 in the buffer's bytes. */
static void tokenize(text *input, bool add_bos, bool parse_special, StringInfo ids)
{
    ol_wire_text_op op = {.add_bos = add_bos, .parse_special = parse_special};
    const char *utf8;
    Size length;
    ol_error error;

    initStringInfo(ids);
    if (!lora_utf8_argument(input, "the text", &utf8, &length, &error) ||
        !lora_text_operation(OL_FRAME_TOKENIZE, utf8, length, &op, ids, &error))
        lora_raise(&error);
}

Datum lora_tokenize(PG_FUNCTION_ARGS)
{
    StringInfoData ids;
    Datum *values;
    int n;

    tokenize(PG_GETARG_TEXT_PP(0), PG_GETARG_BOOL(1), PG_GETARG_BOOL(2), &ids);
    n = ids.len / 4;
    values = palloc(sizeof(Datum) * (Size)(n + 1));
    for (int i = 0; i < n; i++) {
        uint32 id;

        memcpy(&id, ids.data + 4 * i, 4);
        values[i] = Int32GetDatum((int32)id);
    }
    PG_RETURN_ARRAYTYPE_P(construct_array(values, n, INT4OID, 4, true, TYPALIGN_INT));
}

Datum lora_count_tokens(PG_FUNCTION_ARGS)
{
    StringInfoData ids;

    tokenize(PG_GETARG_TEXT_PP(0), false, false, &ids);
    PG_RETURN_INT32(ids.len / 4);
}

Datum lora_detokenize(PG_FUNCTION_ARGS)
{
    ArrayType *array = PG_GETARG_ARRAYTYPE_P(0);
    ol_wire_text_op op = {.skip_special = PG_GETARG_BOOL(1)};
    StringInfoData out, clean;
    ol_error error;
    Datum *values;
    bool *nulls;
    int32 *ids;
    int n;

    deconstruct_array(array, INT4OID, 4, true, TYPALIGN_INT, &values, &nulls, &n);
    if ((Size)n > (Size)lora_max_prompt_size * 1024) /* each is a byte at least */
        ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("too many tokens: %d", n),
                        errdetail("The limit is %d.", lora_max_prompt_size * 1024),
                        errhint("Shorten the list, or raise openlora.max_prompt_size.")));
    ids = palloc(sizeof(int32) * (Size)(n + 1));
    for (int i = 0; i < n; i++) {
        if (nulls[i])
            ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("tokens hold NULL")));
        ids[i] = DatumGetInt32(values[i]);
    }
    initStringInfo(&out);
    if (!lora_text_operation(OL_FRAME_DETOKENIZE, ids, sizeof(int32) * (Size)n, &op, &out, &error))
        lora_raise(&error);
    initStringInfo(&clean);
    lora_append_utf8(&clean, out.data, (Size)out.len);
    PG_RETURN_TEXT_P(lora_text_from_utf8(clean.data, (Size)clean.len));
}
