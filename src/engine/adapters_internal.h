/* adapters_internal.h: what adapters.c and arrival.c share of the store. */
#ifndef OL_ENGINE_ADAPTERS_INTERNAL_H
#define OL_ENGINE_ADAPTERS_INTERNAL_H

#include "engine/adapters.h"
#include "engine/idle.h"

#define ADAPTERS_BUCKETS 16384 /* a power of two */

struct ol_adapters {
    ol_adapters_options how;
    ol_adapters_counts counts;
    ol_sealer *sealer;
    ol_copies copies;
    ol_adapter *buckets[ADAPTERS_BUCKETS];
    ol_idle idle;               /* resident and not pinned */
    ol_adapter_list remembered; /* neither resident nor referenced */
    int named;                  /* how often one was, since uses were halved */
};

void adapters_become_idle(ol_adapters *store, ol_adapter *a, bool fresh);
/* Nobody pins it. */
void adapters_evict(ol_adapters *store, ol_adapter *a);
/* Drops idle adapters until `bytes` more fit; false when they cannot. */
bool adapters_make_room(ol_adapters *store, size_t bytes);

#endif
