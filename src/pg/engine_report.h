/* engine_report.h: what the engine tells the worker itself: that it is ready, how far it has
 * loaded, its counters, its log. */
#ifndef LORA_ENGINE_REPORT_H
#define LORA_ENGINE_REPORT_H

#include "lora_pg.h"

#include "engine_process.h"
#include "wire/message.h"

/* A frame of no session. False when the engine said what cannot be. */
extern bool engine_report_take(EngineProcess *engine, const ol_frame *frame, const uint8 *payload);

#endif
