/* json.c: see json.h. */
#include "engine/formats/json.h"

#include <math.h>

ol_code ol_json_object(const char *text, size_t len, const char *file, json_t **object,
                       ol_error *err)
{
    json_error_t where;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &where);

    if (!root) {
        ol_fail(err, OL_CORRUPT, "\"%s\" is not valid JSON", file);
        return ol_detail(err, "Line %d, column %d: %s.", where.line, where.column, where.text);
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return ol_fail(err, OL_CORRUPT, "\"%s\" is not a JSON object", file);
    }
    *object = root;
    return OL_OK;
}

static bool absent(const json_t *member)
{
    return !member || json_is_null(member);
}

ol_code ol_json_int(const json_t *object, const char *file, const char *key, int64_t low,
                    int64_t high, int *value, ol_error *err)
{
    const json_t *member = json_object_get(object, key);
    json_int_t v;

    if (absent(member))
        return OL_OK;
    if (!json_is_integer(member))
        return ol_fail(err, OL_CORRUPT, "\"%s\": %s is not an integer", file, key);
    v = json_integer_value(member);
    if (v < low || v > high) {
        ol_fail(err, OL_LIMIT, "\"%s\": %s is out of range: %lld", file, key, (long long)v);
        return ol_detail(err, "It must be from %lld to %lld.", (long long)low, (long long)high);
    }
    *value = (int)v;
    return OL_OK;
}

ol_code ol_json_double(const json_t *object, const char *file, const char *key, double *value,
                       ol_error *err)
{
    const json_t *member = json_object_get(object, key);

    if (absent(member))
        return OL_OK;
    if (!json_is_number(member) || !isfinite(json_number_value(member)))
        return ol_fail(err, OL_CORRUPT, "\"%s\": %s is not a number", file, key);
    *value = json_number_value(member);
    return OL_OK;
}

ol_code ol_json_bool(const json_t *object, const char *file, const char *key, bool *value,
                     ol_error *err)
{
    const json_t *member = json_object_get(object, key);

    if (absent(member))
        return OL_OK;
    if (!json_is_boolean(member))
        return ol_fail(err, OL_CORRUPT, "\"%s\": %s is not true or false", file, key);
    *value = json_is_true(member);
    return OL_OK;
}

bool ol_json_is_off(const json_t *value)
{
    if (absent(value) || json_is_false(value))
        return true;
    if (json_is_integer(value))
        return json_integer_value(value) == 0;
    if (json_is_string(value))
        return json_string_length(value) == 0;
    if (json_is_array(value))
        return json_array_size(value) == 0;
    return json_is_object(value) && json_object_size(value) == 0;
}
