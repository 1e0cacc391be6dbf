/* shmem.h: the shared memory of the extension. */
#ifndef LORA_SHMEM_H
#define LORA_SHMEM_H

#include "lora_pg.h"

/* At preload: chains the hooks that ask for it and make it. */
extern void lora_shmem_install_hooks(void);

#endif
