/*
 * load.h: adapters on their way to the device: bytes that a host brings, or a copy in the host's
 * memory, read and placed by the loader's thread beside the steps.
 */
#ifndef OL_ENGINE_LOAD_H
#define OL_ENGINE_LOAD_H

#include "engine/engine_internal.h"

typedef struct load {
    ol_job job; /* first: the loader knows no more */
    const ol_engine *engine;
    ol_adapter_offer what;
    ol_adapter *record;     /* referenced while it is read; NULL for a check */
    ol_adapter_known known; /* unless it is a check */
    ol_copy *copy;          /* held; then nobody offered anything */
    bool keep;              /* as a copy, if it fits */
    ol_copy_buffer near;    /* the offered bytes again, for that; or none */
    size_t reserved;        /* room for it, or 0: it is read, but not placed there */
    ol_adapter_place place; /* that room in a pool */
    bool again;             /* it was read before, and has its room now */
    ol_adapter_made made;
    uint64_t us; /* what reading took */
} load;

/* Each hands a load to the loader, whose it is until ol_loader_next. An offer: as engine.h says. */
ol_code load_offer(ol_engine *engine, const ol_adapter_offer *what, ol_error *err);
/* Of a copy: false when there is none, or no room. */
bool load_copy(ol_engine *engine, const ol_adapter *adapter);
/* In a pool an adapter that is seen for the first time goes to the loader twice: read, it says what
 * pages it needs. True when it does now. */
bool load_again(ol_engine *engine, load *l);

/* The room that was reserved is what it was, for what takes it now. */
void load_unreserve(ol_engine *engine, load *l);
/* Frees it; what was made of it has been taken. */
void load_release(ol_engine *engine, load *l);
/* The same of one that nobody takes any more. */
void load_drop(ol_job *job, void *engine);

#endif
