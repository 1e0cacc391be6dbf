/*
 * hfconfig.h: config.json and generation_config.json of a Hugging Face model
 * folder. The meaning of every field follows transformers' configuration class of
 * the family. A field that would change results and that we do not support is
 * refused by its name, never ignored.
 */
#ifndef OL_FORMATS_HFCONFIG_H
#define OL_FORMATS_HFCONFIG_H

#include "engine/formats/model_config.h"

/* `file` names the origin in errors. json need not be NUL-terminated. */
ol_code ol_hfconfig_parse(const char *json, size_t len, const char *file, ol_model_config *config,
                          ol_error *err);

/* Adds generation_config.json to a parsed config: its eos_token_id replaces the
 * config's (that is what generate() does), bos_token_id too if given, and the
 * sampling defaults are noted. */
ol_code ol_hfconfig_generation(const char *json, size_t len, const char *file,
                               ol_model_config *config, ol_error *err);

#endif
