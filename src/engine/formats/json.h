/* json.h: jansson, with errors as values and the few accessors that the formats need. */
#ifndef OL_FORMATS_JSON_H
#define OL_FORMATS_JSON_H

#include "base/status.h"

#include <jansson.h>

/* Parses an object; duplicate keys are an error. `file` is for messages. The caller
 * frees with json_decref. */
ol_code ol_json_object(const char *text, size_t len, const char *file, json_t **object,
                       ol_error *err);

/* A member that is absent or null leaves *value as it is. A member of another type, or
 * out of range, is an error that names file and key. */
ol_code ol_json_int(const json_t *object, const char *file, const char *key, int64_t low,
                    int64_t high, int *value, ol_error *err);
ol_code ol_json_double(const json_t *object, const char *file, const char *key, double *value,
                       ol_error *err);
ol_code ol_json_bool(const json_t *object, const char *file, const char *key, bool *value,
                     ol_error *err);

/* Absent, null, false, 0, "", [] or {}: a field that asks for nothing. */
bool ol_json_is_off(const json_t *value);

#endif
