/*
 * route.h: the worker's side of the sessions: frames from backends to the engine and
 * back.
 */
#ifndef LORA_ROUTE_H
#define LORA_ROUTE_H

#include "lora_pg.h"

#include "engine_process.h"

/* Attaches to sessions that backends have opened, and drops those whose backend has
 * gone (telling the engine, if there is one). */
extern void route_attach_new(EngineProcess *engine);
/* Moves what can be moved now, both ways. Returns false when the engine wrote what is
 * no frame: it must be ended. */
extern bool route_move(EngineProcess *engine);
/* Before its channel is closed, whatever way it goes: takes what it has sent last. */
extern void route_last_frames(EngineProcess *engine);
/* The worker is ending: what it has not read, nobody will. */
extern void route_end(void);
/* The engine is gone: every session hears LOST, frames meant for it are dropped. */
extern void route_engine_lost(void);

#endif
