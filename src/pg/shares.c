/* shares.c: exact splitting: see attribution.h. */
#include "attribution.h"

#include <math.h>

static int compare_rest(const void *a, const void *b)
{
    const int128 *x = *(const int128 *const *)a, *y = *(const int128 *const *)b;

    if (*x != *y)
        return *x > *y ? -1 : 1;
    return x < y ? -1 : 1; /* places in one array: the first of equals first */
}

void lora_split(int64 total, int n, const int64 *weights, int64 *parts)
{
    int128 *rest = palloc(sizeof(int128) * (Size)(n + 1));
    const int128 **order = palloc(sizeof(*order) * (Size)(n + 1));
    int128 sum = 0;
    int64 left = total;

    for (int i = 0; i < n; i++)
        sum += weights[i];
    for (int i = 0; i < n; i++) {
        int128 product = (int128)total * (sum > 0 ? weights[i] : 1);
        int128 whole = sum > 0 ? sum : n;

        parts[i] = (int64)(product / whole);
        rest[i] = product % whole;
        order[i] = &rest[i];
        left -= parts[i];
    }
    qsort(order, (size_t)n, sizeof(*order), compare_rest);
    for (int i = 0; i < n && left > 0; i++, left--) /* fewer are left than there are parts */
        parts[order[i] - rest]++;
    pfree(order);
    pfree(rest);
}

void lora_split_shares(int n, const double *shares, int64 *parts)
{
    int64 weights[OL_MAX_REQUEST_ADAPTERS];
    bool good = true;

    for (int i = 0; i < n; i++)
        good = good && shares[i] >= 0 && shares[i] <= 1.000001;
    for (int i = 0; i < n; i++)
        weights[i] = good ? (int64)rint(shares[i] * 1e15) : 1;
    lora_split(LORA_WHOLE, n, weights, parts);
}
