/*
 * queue.h: requests that are answered later: lora_submit, lora_result, lora_cancel.
 *
 * A row of openlora.queue is a request. One worker per database takes rows that are
 * committed, keeps many in flight, and writes each answer, its attribution and the row's new
 * state in one transaction. An attempt is counted in a transaction of its own before it
 * begins, so that a request that kills the engine or the server is given up in the end; its
 * last attempt is made alone, so that it takes no other request with it.
 */
#ifndef LORA_QUEUE_H
#define LORA_QUEUE_H

#include "lora_pg.h"

extern void lora_queue_install_hooks(void);
/* The worker's main: queue_worker.c. */
extern void lora_queue_worker(void);

#endif
