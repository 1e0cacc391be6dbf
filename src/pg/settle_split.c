/*
 * settle_split.c: openlora.split_units: an amount of whole units split by exact weights, so
 * that nothing is lost and nothing is created. Floors first, then one unit each by largest
 * remainder, the first of equals first. lora_split (shares.c) does the same for weights
 * that fit an int64; what a settlement weighs are sums of exact products, which do not.
 */
#include "lora_pg.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

PG_FUNCTION_INFO_V1(lora_split_units);

typedef struct Part {
    Datum rest; /* numeric: what the floor left, times the sum of weights */
    int64 units;
    int place;
} Part;

static Datum binary(PGFunction function, Datum a, Datum b)
{
    return DirectFunctionCall2(function, a, b);
}

static int largest_rest_first(const void *a, const void *b)
{
    const Part *x = a, *y = b;
    int order = DatumGetInt32(binary(numeric_cmp, y->rest, x->rest));

    return order ? order : x->place - y->place;
}

static Datum sum_of(const Datum *weights, const bool *nulls, int n)
{
    Datum zero = NumericGetDatum(int64_to_numeric(0)), sum = zero;

    for (int i = 0; i < n; i++) {
        if (nulls[i])
            ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("weights hold NULL")));
        if (numeric_is_nan(DatumGetNumeric(weights[i])) ||
            numeric_is_inf(DatumGetNumeric(weights[i])) ||
            DatumGetBool(binary(numeric_lt, weights[i], zero)))
            ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                            errmsg("weight %d is not a number of zero or more", i + 1)));
        sum = binary(numeric_add, sum, weights[i]);
    }
    return sum;
}

static void split(int64 total, const Datum *weights, int n, Datum sum, Part *parts)
{
    Datum whole = NumericGetDatum(int64_to_numeric(total));
    int64 left = total;

    for (int i = 0; i < n; i++) {
        Datum product = binary(numeric_mul, whole, weights[i]);
        Datum units = binary(numeric_div_trunc, product, sum);

        parts[i] = (Part){
            .units = DatumGetInt64(DirectFunctionCall1(numeric_int8, units)),
            .rest = binary(numeric_sub, product, binary(numeric_mul, units, sum)),
            .place = i,
        };
        left -= parts[i].units;
    }
    qsort(parts, (size_t)n, sizeof(*parts), largest_rest_first);
    Assert(left >= 0 && left <= n);
    for (int i = 0; i < left; i++)
        parts[i].units++;
}

/* openlora.split_units(total bigint, weights numeric[]) -> bigint[] */
Datum lora_split_units(PG_FUNCTION_ARGS)
{
    int64 total = PG_GETARG_INT64(0);
    Datum *weights, *units, sum;
    Part *parts;
    bool *nulls;
    int n;

    deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), NUMERICOID, -1, false, TYPALIGN_INT, &weights,
                      &nulls, &n);
    sum = sum_of(weights, nulls, n);
    if (total < 0)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("an amount below zero cannot be split")));
    parts = palloc0(sizeof(Part) * (Size)(n + 1));
    units = palloc(sizeof(Datum) * (Size)(n + 1));
    if (total > 0 && DatumGetBool(binary(numeric_eq, sum, NumericGetDatum(int64_to_numeric(0)))))
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("nobody has a share of the amount to be split")));
    if (total > 0)
        split(total, weights, n, sum, parts);
    else
        for (int i = 0; i < n; i++)
            parts[i].place = i;
    for (int i = 0; i < n; i++)
        units[parts[i].place] = Int64GetDatum(parts[i].units);
    PG_RETURN_ARRAYTYPE_P(construct_array(units, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}
