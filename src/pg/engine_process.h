/*
 * engine_process.h: the engine as a child of the worker: started, watched, ended.
 * State and errors are published in shared memory (shared.h).
 */
#ifndef LORA_ENGINE_PROCESS_H
#define LORA_ENGINE_PROCESS_H

#include "lora_pg.h"

#include "shared.h"
#include "wire/channel.h"

typedef struct EngineProcess {
    pid_t pid; /* 0: none */
    ol_channel channel;
    int failures; /* in a row, for the pause before the next start */
    bool asked_for; /* by a reload, since it ended: starts now, even if it was broken */
    TimestampTz next_start;
    void (*last_frames)(struct EngineProcess *engine); /* called before its channel is closed */
    char *settings; /* as the running or broken engine was started with */
} EngineProcess;

/* Starts the engine if one should run now and none does. */
extern void engine_start_if_due(EngineProcess *engine);
/* Whether the settings differ from those it was started with. */
extern bool engine_settings_changed(const EngineProcess *engine);
/* Takes note of an exit of the child; true when it just went away. */
extern bool engine_reap(EngineProcess *engine);
/* Ends it, politely at first when `polite` (and else with a pause before the next). Waits. */
extern void engine_stop(EngineProcess *engine, bool polite, const char *why);
/* It closed its side of the channel: it is exiting, or of no use. Waits for its end, which
 * engine_reap then tells. */
extern void engine_stop_closed(EngineProcess *engine);
/* Milliseconds until engine_start_if_due would act; -1: never by itself. */
extern long engine_pause_left(const EngineProcess *engine);

extern void engine_publish(LoraEngineState state, const ol_error *error);

#endif
