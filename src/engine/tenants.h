/*
 * tenants.h: fair shares of the engine's work: virtual token counters.
 *
 * Each tenant's counter grows with the tokens computed for it, divided by its weight; who
 * has the lowest is served first. A tenant that had nothing to do is lifted to the lowest
 * counter of those that have: time away earns no credit. (Y. Sheng et al., Fairness in
 * Serving Large Language Models, OSDI 2024.)
 */
#ifndef OL_ENGINE_TENANTS_H
#define OL_ENGINE_TENANTS_H

#include "base/status.h"

typedef struct ol_tenants ol_tenants;

typedef struct ol_tenant {
    uint32_t id;
    float weight;   /* as last given; above 0 */
    double counter; /* tokens / weight */
    int live;       /* sequences that wait or run */
    int running;
    struct ol_tenant *next; /* of its bucket */
} ol_tenant;

ol_code ol_tenants_create(ol_tenants **tenants, ol_error *err);
void ol_tenants_free(ol_tenants *tenants); /* NULL is fine */

/* A sequence of the tenant begins to wait; NULL when out of memory. */
ol_tenant *ol_tenants_enter(ol_tenants *tenants, uint32_t id, float weight);
/* It is gone. */
void ol_tenants_leave(ol_tenants *tenants, ol_tenant *tenant);
void ol_tenants_charge(ol_tenants *tenants, ol_tenant *tenant, double tokens);
/* Tenants that have sequences. */
int ol_tenants_live(const ol_tenants *tenants);

#endif
