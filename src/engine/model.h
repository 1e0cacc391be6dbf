/*
 * model.h: the base model on a device, and its forward pass.
 *
 * The pass is written once, over the device table: it knows neither what computes
 * nor which family of models this is (that is data: model_config.h). Its unit is a
 * step (device.h).
 */
#ifndef OL_ENGINE_MODEL_H
#define OL_ENGINE_MODEL_H

#include "engine/formats/weights.h"

typedef struct ol_model ol_model;

typedef struct ol_model_options {
    const ol_device_table *table;
    ol_device *device;
    ol_quantization quantization;
    ol_progress_fn progress; /* bytes of weights placed; may be NULL */
    void *progress_context;
} ol_model_options;

/* Checks every tensor, then places all on the device. The source must outlive the
 * device, which may use mapped bytes in place. */
ol_code ol_model_load(ol_model_source *source, const ol_model_options *options, ol_model **model,
                      ol_error *err);
void ol_model_free(ol_model *model); /* NULL is fine */

const ol_model_config *ol_model_config_of(const ol_model *model);

/* Runs a step: step_begin to step_end. *logits: [step->n_logit_rows][vocab], valid until
 * the next step; NULL when the step wants none. A failure means that the device failed. */
ol_code ol_model_forward(ol_model *model, const ol_step *step, ol_kv *kv, const float **logits,
                         ol_error *err);

#endif
