/*
 * metering.h: the metered requests that the engine has, in the openlora worker.
 *
 * The worker keeps the meter of each REQUEST that it hands to the engine, by its address
 * (session, epoch, tag), and what the engine reports of its use. So the engine cannot invent
 * requests, nor book one to somebody else; and when it dies, what it has reported is metered.
 * Each request has one receipt in the end, if anything was computed for it or it was announced:
 *
 *   the engine tells its end (RECEIPT), also of one that was cancelled
 *   the engine refuses it: it ends (EVENT) without a RECEIPT
 *   the engine is lost: what was reported so far, as LOST
 *   it is read from its session, and not handed on: as LOST, of nothing
 */
#ifndef LORA_METERING_H
#define LORA_METERING_H

#include "lora_pg.h"

#include "wire/message.h"

/* A REQUEST: it was handed to the engine; it was not, and will not be. `frame` has its address. */
extern void lora_metering_begin(const ol_frame *frame, const void *payload);
extern void lora_metering_refuse(const ol_frame *frame, const void *payload);
/* A RECEIPT. False: the engine said what cannot be. */
extern bool lora_metering_report(const ol_frame *frame, const void *payload);
/* An EVENT that may be the last of a request. */
extern void lora_metering_event(const ol_frame *frame, const uint8 *payload);
/* There is no engine any more. */
extern void lora_metering_lost(void);

#endif
