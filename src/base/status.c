/* status.c: see status.h. */
#include "base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Drops a multi-byte character that vsnprintf cut in half. */
static void trim_utf8(char *text)
{
    size_t len = strlen(text);
    size_t back = 0;

    while (back < 4 && back < len && ((unsigned char)text[len - 1 - back] & 0xC0) == 0x80)
        back++;
    if (back < len) {
        unsigned char lead = (unsigned char)text[len - 1 - back];
        size_t need = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : lead >= 0xC0 ? 1 : 0;

        if (need > back)
            text[len - 1 - back] = '\0';
    }
}

static void format_into(char *out, size_t size, const char *fmt, va_list ap)
    __attribute__((format(printf, 3, 0)));

static void format_into(char *out, size_t size, const char *fmt, va_list ap)
{
    int n = vsnprintf(out, size, fmt, ap);

    if (n < 0)
        out[0] = '\0';
    else if ((size_t)n >= size)
        trim_utf8(out);
}

ol_code ol_fail(ol_error *err, ol_code code, const char *fmt, ...)
{
    va_list ap;

    err->code = code;
    err->detail[0] = err->hint[0] = '\0';
    va_start(ap, fmt);
    format_into(err->message, sizeof(err->message), fmt, ap);
    va_end(ap);
    return code;
}

ol_code ol_detail(ol_error *err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    format_into(err->detail, sizeof(err->detail), fmt, ap);
    va_end(ap);
    return err->code;
}

ol_code ol_hint(ol_error *err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    format_into(err->hint, sizeof(err->hint), fmt, ap);
    va_end(ap);
    return err->code;
}

ol_code ol_prefix(ol_error *err, const char *fmt, ...)
{
    char joined[sizeof(err->message)];
    va_list ap;
    size_t used;

    va_start(ap, fmt);
    format_into(joined, sizeof(joined), fmt, ap);
    va_end(ap);
    used = strlen(joined);
    if ((size_t)snprintf(joined + used, sizeof(joined) - used, ": %s", err->message) >=
        sizeof(joined) - used)
        trim_utf8(joined);
    memcpy(err->message, joined, sizeof(joined));
    return err->code;
}

ol_code ol_fail_nomem(ol_error *err, size_t bytes, const char *what)
{
    ol_fail(err, OL_NOMEM, "out of memory for %s", what);
    return ol_detail(err, "Failed on a request of %zu bytes.", bytes);
}

ol_code ol_fail_errno(ol_error *err, const char *what, const char *path)
{
    int saved = errno;
    ol_code code = saved == ENOENT ? OL_NOT_FOUND : saved == ENOMEM ? OL_NOMEM : OL_IO;

    return ol_fail(err, code, "%s \"%s\": %s", what, path, strerror(saved));
}

const char *ol_code_name(ol_code code)
{
    static const char *const names[] = {"ok",       "invalid",   "corrupt", "unsupported",
                                        "mismatch", "not_found", "limit",   "nomem",
                                        "io_error", "cancelled", "device",  "lost",
                                        "denied",   "quota",     "busy",    "internal"};

    return (unsigned)code <= OL_CODE_LAST ? names[code] : "unknown";
}
