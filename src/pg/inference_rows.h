/* inference_rows.h: the rows of an inference, but for who is credited (credits.h). */
#ifndef LORA_INFERENCE_ROWS_H
#define LORA_INFERENCE_ROWS_H

#include "lora_pg.h"

#include "request.h"

/* With the rights of the tables' owner. */
extern void lora_write_inference(const LoraSpec *spec, const LoraResult *result, Oid caller);
/* `parts`: measured shares in parts per million. */
extern void lora_write_inference_adapters(int64 inference, const LoraSpec *spec,
                                          const int64 *parts);
/* What openlora.keep_text = full keeps. */
extern void lora_write_inference_texts(const LoraSpec *spec, const LoraResult *result);

#endif
