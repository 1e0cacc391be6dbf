/*
 * test_hooks.c: functions for the regression tests. The install script does not declare
 * them; a test does, which only a superuser can.
 */
#include "lora_pg.h"

#include "adapters.h"
#include "attribution.h"
#include "catalog/pg_type.h"
#include "ledger.h"
#include "miscadmin.h"
#include "shared.h"
#include "utils/array.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(lora_test_split);
PG_FUNCTION_INFO_V1(lora_test_attribute);
PG_FUNCTION_INFO_V1(lora_test_receipts);

/* lora_test_split(total bigint, weights bigint[]) -> bigint[] */
Datum lora_test_split(PG_FUNCTION_ARGS)
{
    Datum *values;
    bool *nulls;
    int64 *weights, *parts;
    int n;

    deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE,
                      &values, &nulls, &n);
    weights = palloc(sizeof(int64) * (Size)(n + 1));
    parts = palloc(sizeof(int64) * (Size)(n + 1));
    for (int i = 0; i < n; i++)
        weights[i] = DatumGetInt64(values[i]);
    lora_split(PG_GETARG_INT64(0), n, weights, parts);
    for (int i = 0; i < n; i++)
        values[i] = Int64GetDatum(parts[i]);
    PG_RETURN_ARRAYTYPE_P(construct_array(values, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* lora_test_attribute(adapter_ids text[], weights float8[], shares float8[],
 * prompt_tokens int, completion_tokens int) -> the inference's id, as if answered */
Datum lora_test_attribute(PG_FUNCTION_ARGS)
{
    LoraSpec spec = {.function = "lora_test_attribute"};
    LoraResult result = {.finish = OL_FINISH_LENGTH,
                         .prompt_tokens = PG_GETARG_INT32(3),
                         .completion_tokens = PG_GETARG_INT32(4)};
    ol_error error;
    Datum *values;
    bool *nulls;

    if (!lora_check_preloaded(&error))
        lora_raise(&error);
    spec.n_adapters = lora_adapters_resolve(PG_ARGISNULL(0) ? NULL : PG_GETARG_ARRAYTYPE_P(0),
                                            PG_ARGISNULL(1) ? NULL : PG_GETARG_ARRAYTYPE_P(1),
                                            &spec.adapters, &error);
    if (spec.n_adapters < 0)
        lora_raise(&error);
    deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), FLOAT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE,
                      &values, &nulls, &result.n_shares);
    for (int i = 0; i < result.n_shares && i < OL_MAX_REQUEST_ADAPTERS; i++)
        result.shares[i] = DatumGetFloat8(values[i]);
    result.inference = lora_next_inference();
    lora_make_salt(&result.salt);
    PG_RETURN_INT64(lora_attribute(&spec, &result));
}

/* lora_test_receipts(n int): as if the worker had heard of as many requests, one adapter each */
Datum lora_test_receipts(PG_FUNCTION_ARGS)
{
    LoraSpec spec = {.function = "lora_test_receipts", .prompt = "", .completion = ""};
    LoraReceipt *receipt = palloc0(sizeof(*receipt));
    LoraResult result = {0};

    for (int i = 0; i < PG_GETARG_INT32(0); i++) {
        CHECK_FOR_INTERRUPTS();
        result.inference = lora_next_inference();
        lora_make_salt(&result.salt);
        lora_meter_fill(&receipt->meter, &spec, &result, 0);
        receipt->meter.n_adapters = 1;
        receipt->meter.weights[0] = 1;
        receipt->shares[0] = 1000000;
        receipt->at = GetCurrentTimestamp();
        receipt->input_tokens = receipt->output_tokens = 1;
        strlcpy(receipt->device, "test", sizeof(receipt->device));
        lora_ledger_put(receipt);
    }
    (void)lora_wake_worker();
    PG_RETURN_VOID();
}
