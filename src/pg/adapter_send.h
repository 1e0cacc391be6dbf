/* adapter_send.h: an adapter's bytes on their way to the engine. */
#ifndef LORA_ADAPTER_SEND_H
#define LORA_ADAPTER_SEND_H

#include "lora_pg.h"

#include "adapters.h"
#include "session.h"

/* Streams weights and config, then the frame that consumes them: `type`, with the digest if there
 * is one. */
extern LoraIo lora_adapter_send(uint64 tag, uint16 type, LoraAdapterReader *reader,
                                const ol_digest *digest);

#endif
