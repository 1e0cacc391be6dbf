/*
 * events.h: the queue of events between the engine and its host.
 *
 * Records are small; texts, alternatives, shares and errors lie in one buffer that is
 * used again when the queue has been emptied. So a host that polls until there is nothing
 * left costs no allocation per event.
 */
#ifndef OL_ENGINE_EVENTS_H
#define OL_ENGINE_EVENTS_H

#include "base/buf.h"
#include "engine/engine.h"

typedef struct ol_events ol_events;

ol_code ol_events_create(ol_events **events, ol_error *err);
void ol_events_free(ol_events *events); /* NULL is fine */

/* Copies the event and what it points to. An event that finds no memory makes the queue
 * `failed`, which ol_engine_step reports. */
void ol_events_push(ol_events *events, const ol_event *event);
/* As if one had found no memory. */
void ol_events_fail(ol_events *events);
bool ol_events_poll(ol_events *events, ol_event *event);
/* Forgets what is queued for a tag. */
void ol_events_drop(ol_events *events, uint64_t tag);
bool ol_events_failed(const ol_events *events);

#endif
