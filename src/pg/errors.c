/*
 * errors.c: error values to ereport, once, here.
 *
 * The engine speaks UTF-8; texts are converted to the database's encoding.
 */
#include "lora_pg.h"

#include "utf8.h"

int lora_sqlstate(ol_code code)
{
    switch (code) {
    case OL_INVALID:
        return ERRCODE_INVALID_PARAMETER_VALUE;
    case OL_CORRUPT:
        return ERRCODE_INVALID_BINARY_REPRESENTATION;
    case OL_UNSUPPORTED:
        return ERRCODE_FEATURE_NOT_SUPPORTED;
    case OL_MISMATCH:
        return ERRCODE_DATATYPE_MISMATCH;
    case OL_NOT_FOUND:
        return ERRCODE_UNDEFINED_OBJECT;
    case OL_LIMIT:
        return ERRCODE_PROGRAM_LIMIT_EXCEEDED;
    case OL_NOMEM:
        return ERRCODE_OUT_OF_MEMORY;
    case OL_IO:
        return ERRCODE_IO_ERROR;
    case OL_CANCELLED:
        return ERRCODE_QUERY_CANCELED;
    case OL_DEVICE:
        return ERRCODE_SYSTEM_ERROR;
    case OL_LOST:
        return ERRCODE_CONNECTION_FAILURE;
    case OL_DENIED:
        return ERRCODE_INSUFFICIENT_PRIVILEGE;
    case OL_BUSY:
        return ERRCODE_CONFIGURATION_LIMIT_EXCEEDED;
    case OL_QUOTA:
        return ERRCODE_CONFIGURATION_LIMIT_EXCEEDED;
    case OL_OK:
    case OL_INTERNAL:
        break;
    }
    return ERRCODE_INTERNAL_ERROR;
}

void lora_raise(const ol_error *error)
{
    ereport(ERROR, (errcode(lora_sqlstate(error->code)),
                    errmsg_internal("%s", lora_from_utf8(error->message)),
                    error->detail[0] ? errdetail_internal("%s", lora_from_utf8(error->detail)) : 0,
                    error->hint[0] ? errhint("%s", lora_from_utf8(error->hint)) : 0));
    pg_unreachable();
}

bool lora_check_preloaded(ol_error *error)
{
    if (lora_preloaded)
        return true;
    ol_fail(error, OL_INVALID, "openlora is not loaded at server start");
    ol_hint(error, "Add openlora to shared_preload_libraries and restart the server.");
    return false;
}
