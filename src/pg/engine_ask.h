/*
 * engine_ask.h: single questions to the engine, which are answered at once; frames that come
 * meanwhile go to the requests that they are for.
 */
#ifndef LORA_ENGINE_ASK_H
#define LORA_ENGINE_ASK_H

#include "lora_pg.h"

#include "adapters.h"
#include "engine/engine.h"
#include "lib/stringinfo.h"
#include "wire/message.h"

/* Asks the engine to validate an adapter against its base. 1: good, 0: refused (error),
 * -1: there is no engine to ask. */
extern int lora_check_adapter(LoraAdapterReader *reader, ol_adapter_facts *facts, ol_error *error);

/* TOKENIZE and DETOKENIZE: the answer is appended to `out`. */
extern bool lora_text_operation(uint16 frame_type, const void *bytes, Size length,
                                const ol_wire_text_op *op, StringInfo out, ol_error *error);

/* Statistics of the engine (wire/stats.h): encoded rows are appended. */
extern bool lora_ask_stats(uint8 which, StringInfo rows, ol_error *error);

#endif
