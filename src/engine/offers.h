/*
 * offers.h: adapters on their way through the loader, from an offer to its result.
 *
 * An offer holds its adapter's record and, as far as there is any, room for it, from the beginning
 * until it is released: after its result was taken (results.c), or when the engine is closed.
 */
#ifndef OL_ENGINE_OFFERS_H
#define OL_ENGINE_OFFERS_H

#include "engine/adapters.h"
#include "engine/engine.h"
#include "engine/loader.h"

typedef struct offer {
    ol_job job; /* first: the loader knows no more */
    const ol_engine *engine;
    ol_adapter_offer what;
    ol_adapter *record;     /* referenced while it is read; NULL for a check */
    ol_adapter_known known; /* unless it is a check */
    ol_copy *copy;          /* held; then nobody offered anything */
    size_t reserved;        /* room for it, or 0: it is read, but not placed there */
    ol_adapter_place place; /* that room in a pool */
    bool again;             /* it was read before, and has its room now */
    ol_adapter_made made;
    uint64_t us; /* what reading took */
} offer;

/* Has the loader place what there is a copy of in the host's memory; false when there is none, or
 * no room. */
bool offer_copy(ol_engine *engine, const ol_adapter *adapter);
/* The next that was read, or NULL. */
offer *offer_next(ol_engine *engine);
/* Gives back the room that was counted for it. */
void offer_unreserve(ol_engine *engine, offer *o);
/* Gives back all that it holds, and is no more. */
void offer_release(ol_engine *engine, offer *o);
/* A job of the loader that nobody takes back any more. */
void offer_drop(ol_job *job, void *engine);

#endif
