/* worker.h: the background worker that supervises the engine and moves frames. */
#ifndef LORA_WORKER_H
#define LORA_WORKER_H

#include "lora_pg.h"

extern PGDLLEXPORT void lora_worker_main(Datum arg);

#endif
