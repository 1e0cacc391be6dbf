/*
 * idle.h: resident adapters that nobody pins, in the order in which they go when room is needed:
 * those that were asked for least often of late, and of these the least recently used.
 *
 * "Of late": each adapter's `uses` counts up to OL_USES, is halved now and then, and is kept
 * while its record is, resident or not. Under requests of which a few adapters get many, as they
 * mostly come, the many that are asked for once pass through without pushing out the few; and
 * what nobody asks for any more is forgotten after two halvings.
 */
#ifndef OL_ENGINE_IDLE_H
#define OL_ENGINE_IDLE_H

#include "engine/adapters.h"

typedef struct ol_adapter_list {
    ol_adapter *oldest, *newest;
    int n;
} ol_adapter_list;

void ol_adapter_list_append(ol_adapter_list *list, ol_adapter *adapter);
void ol_adapter_list_remove(ol_adapter_list *list, ol_adapter *adapter);

typedef struct ol_idle {
    ol_adapter_list by_uses[OL_USES + 1]; /* an adapter's is its `place` */
} ol_idle;

/* One that has just come, and was asked for (`fresh`), goes last: somebody waits for it. */
void ol_idle_add(ol_idle *idle, ol_adapter *adapter, bool fresh);
void ol_idle_remove(ol_idle *idle, ol_adapter *adapter);
/* The one to go first, or NULL. */
ol_adapter *ol_idle_first(const ol_idle *idle);
/* For those in the lists, uses are halved; the records' own counts (`uses`, `place`) are the
 * caller's. */
void ol_idle_halve(ol_idle *idle);

#endif
