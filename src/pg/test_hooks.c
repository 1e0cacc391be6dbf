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
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(lora_test_split);
PG_FUNCTION_INFO_V1(lora_test_splits);
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

extern Datum lora_split_units(PG_FUNCTION_ARGS); /* settle_split.c */

#define MOST_PARTS 24

static uint64 next_random(uint64 *state)
{
    uint64 z = *state += UINT64CONST(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64CONST(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64CONST(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Of all magnitudes; often small, and often zero. */
static int64 random_amount(uint64 *state, int bits)
{
    uint64 z = next_random(state);

    return z % 5 == 0 ? 0 : (int64)(next_random(state) >> (64 - 1 - z / 8 % (uint64)bits));
}

/* Nothing lost or created, and every part its exact share, rounded down or up. */
static bool is_fair(int64 total, int n, const int64 *weights, const int64 *parts)
{
    int128 sum = 0, parts_sum = 0;

    for (int i = 0; i < n; i++)
        sum += weights[i];
    for (int i = 0; i < n; i++) {
        int128 product = (int128)total * (sum > 0 ? weights[i] : 1), whole = sum > 0 ? sum : n;
        int64 least = (int64)(product / whole);

        parts_sum += parts[i];
        if (parts[i] < least || parts[i] > least + (product % whole != 0))
            return false;
    }
    return parts_sum == total;
}

/* openlora.split_units of the same weights, as millionths, makes the same parts. */
static bool agrees_in_numeric(int64 total, int n, const int64 *weights, const int64 *parts)
{
    Datum values[MOST_PARTS], *units;
    ArrayType *array;
    bool *nulls, same = true;

    for (int i = 0; i < n; i++)
        values[i] = NumericGetDatum(int64_div_fast_to_numeric(weights[i], 6));
    array = construct_array(values, n, NUMERICOID, -1, false, TYPALIGN_INT);
    array = DatumGetArrayTypeP(
        DirectFunctionCall2(lora_split_units, Int64GetDatum(total), PointerGetDatum(array)));
    deconstruct_array(array, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &units, &nulls, &n);
    for (int i = 0; i < n; i++)
        same = same && DatumGetInt64(units[i]) == parts[i];
    return same;
}

/* lora_test_splits(n bigint, seed bigint, numeric boolean) -> how many random splits are wrong */
Datum lora_test_splits(PG_FUNCTION_ARGS)
{
    uint64 state = (uint64)PG_GETARG_INT64(1);
    int64 weights[MOST_PARTS], parts[MOST_PARTS], total, wrong = 0;
    MemoryContext once = AllocSetContextCreate(CurrentMemoryContext, "split", ALLOCSET_SMALL_SIZES);
    MemoryContext before = MemoryContextSwitchTo(once);

    for (int64 i = 0; i < PG_GETARG_INT64(0); i++) {
        int n = 1 + (int)(next_random(&state) % MOST_PARTS);
        int128 sum = 0;

        CHECK_FOR_INTERRUPTS();
        total = random_amount(&state, 62);
        for (int k = 0; k < n; k++)
            sum += weights[k] = random_amount(&state, 58);
        lora_split(total, n, weights, parts);
        if (!is_fair(total, n, weights, parts) ||
            (PG_GETARG_BOOL(2) && sum > 0 && !agrees_in_numeric(total, n, weights, parts)))
            wrong++;
        MemoryContextReset(once);
    }
    MemoryContextSwitchTo(before);
    MemoryContextDelete(once);
    PG_RETURN_INT64(wrong);
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
    LWLockAcquire(lora_shared->lock, LW_SHARED);
    result.engine = lora_shared->info;
    LWLockRelease(lora_shared->lock);
    PG_RETURN_INT64(lora_attribute(&spec, &result));
}

/* lora_test_receipts(n int): as if the worker had heard of as many requests, one adapter each */
Datum lora_test_receipts(PG_FUNCTION_ARGS)
{
    LoraSpec spec = {.function = "lora_test_receipts",
                     .prompt = "",
                     .completion = "",
                     .sampling = {.max_tokens = 1}};
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
