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

/* Of a step's logit rows, valid until the next step: choices where step->picks says how (only for
 * a device that chooses), else logits, [n_logit_rows][vocab]. The other is NULL; both are when the
 * step has no such rows. */
typedef struct ol_model_output {
    const ol_choice *choices;
    const float *logits;
} ol_model_output;

/* Runs a step: step_begin to step_end. A failure means that the device failed. */
ol_code ol_model_forward(ol_model *model, const ol_step *step, ol_kv *kv, ol_model_output *output,
                         ol_error *err);

#endif
