/* log.c: see log.h. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

static ol_log_fn sink;
static void *sink_context;

void ol_log_set(ol_log_fn fn, void *context)
{
    sink = fn;
    sink_context = context;
}

void ol_log(ol_log_level level, const char *fmt, ...)
{
    static const char *const names[] = {"debug", "info", "warning", "error"};
    char text[1024];
    va_list ap;

    if (!sink && level == OL_LOG_DEBUG)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (sink)
        sink(level, text, sink_context);
    else
        fprintf(stderr, "%s: %s\n", names[level], text);
}
