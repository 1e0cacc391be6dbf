/* tenants.c: see tenants.h. */
#include "engine/tenants.h"

#include <assert.h>
#include <stdlib.h>

#define BUCKETS 256 /* a power of two */
#define MAX_IDLE 4096

struct ol_tenants {
    ol_tenant *buckets[BUCKETS];
    int n, n_live;
};

ol_code ol_tenants_create(ol_tenants **out, ol_error *err)
{
    *out = calloc(1, sizeof(**out));
    return *out ? OL_OK : ol_fail_nomem(err, sizeof(**out), "the tenants");
}

/* Drops those without sequences, all of them or none (NULL: all). */
static void drop_idle(ol_tenants *t)
{
    for (int i = 0; i < BUCKETS; i++)
        for (ol_tenant **at = &t->buckets[i]; *at;) {
            ol_tenant *tenant = *at;

            if (tenant->live > 0) {
                at = &tenant->next;
                continue;
            }
            *at = tenant->next;
            free(tenant);
            t->n--;
        }
}

void ol_tenants_free(ol_tenants *t)
{
    if (!t)
        return;
    drop_idle(t);
    assert(t->n == 0);
    free(t);
}

static double lowest_live(const ol_tenants *t, double otherwise)
{
    double lowest = otherwise;
    bool any = false;

    for (int i = 0; i < BUCKETS; i++)
        for (const ol_tenant *tenant = t->buckets[i]; tenant; tenant = tenant->next)
            if (tenant->live > 0 && (!any || tenant->counter < lowest)) {
                lowest = tenant->counter;
                any = true;
            }
    return lowest;
}

static ol_tenant *find_or_make(ol_tenants *t, uint32_t id)
{
    ol_tenant **bucket = &t->buckets[(id * 0x9E3779B9u >> 20) & (BUCKETS - 1)];
    ol_tenant *tenant = *bucket;

    while (tenant && tenant->id != id)
        tenant = tenant->next;
    if (tenant)
        return tenant;
    if (t->n >= MAX_IDLE && t->n_live < t->n / 2)
        drop_idle(t);
    tenant = calloc(1, sizeof(*tenant));
    if (!tenant)
        return NULL;
    tenant->id = id;
    tenant->next = *bucket;
    *bucket = tenant;
    t->n++;
    return tenant;
}

ol_tenant *ol_tenants_enter(ol_tenants *t, uint32_t id, float weight)
{
    ol_tenant *tenant = find_or_make(t, id);
    double lowest;

    if (!tenant)
        return NULL;
    tenant->weight = weight > 0 ? weight : 1;
    if (tenant->live == 0) {
        lowest = lowest_live(t, tenant->counter);
        if (tenant->counter < lowest)
            tenant->counter = lowest;
        t->n_live++;
    }
    tenant->live++;
    return tenant;
}

void ol_tenants_leave(ol_tenants *t, ol_tenant *tenant)
{
    assert(tenant->live > 0);
    if (--tenant->live > 0)
        return;
    if (--t->n_live == 0)
        drop_idle(t); /* nobody is left whom their past concerns */
}

void ol_tenants_charge(ol_tenants *t, ol_tenant *tenant, double tokens)
{
    (void)t;
    tenant->counter += tokens / (double)tenant->weight;
}

int ol_tenants_live(const ol_tenants *t)
{
    return t->n_live;
}
