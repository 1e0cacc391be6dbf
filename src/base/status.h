/*
 * status.h: errors are values.
 *
 * A function that can fail returns an ol_code and takes an ol_error pointer as
 * its last argument.  On failure the error holds one message (what went wrong,
 * where), optionally a detail (the figures, the limit) and a hint (what to do).
 * Nobody below the edge prints, exits or jumps; the edges (main.c of the engine,
 * errors.c of the extension) turn the value into text or an ereport, once.
 *
 * The ol_error pointer must not be NULL.  On success its contents are undefined.
 */
#ifndef OL_BASE_STATUS_H
#define OL_BASE_STATUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum ol_code {
    OL_OK = 0,
    OL_INVALID,     /* an argument or request that makes no sense */
    OL_CORRUPT,     /* bytes that do not follow their format */
    OL_UNSUPPORTED, /* well-formed, but something we do not do */
    OL_MISMATCH,    /* adapter and base model do not fit together */
    OL_NOT_FOUND,   /* file, tensor, adapter */
    OL_LIMIT,       /* beyond a configured or fixed limit */
    OL_NOMEM,       /* memory, on host or device */
    OL_IO,          /* the operating system said no */
    OL_CANCELLED,   /* the caller asked for it */
    OL_DEVICE,      /* the device failed */
    OL_LOST,        /* the engine process went away */
    OL_DENIED,      /* not allowed to whoever asks */
    OL_QUOTA,       /* more than whoever asks may have */
    OL_BUSY,        /* too many before it: later it may be taken */
    OL_INTERNAL     /* our bug */
} ol_code;

#define OL_CODE_LAST OL_INTERNAL

typedef struct ol_error {
    ol_code code;
    char message[320];
    char detail[512];
    char hint[320];
} ol_error;

/* Fills err (clearing detail and hint) and returns code. Long texts are cut at a
 * UTF-8 character border. */
ol_code ol_fail(ol_error *err, ol_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Add a detail or hint to an error just made. They return err->code, so that
 * `return ol_hint(err, ...)` reads naturally after ol_fail. */
ol_code ol_detail(ol_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
ol_code ol_hint(ol_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Puts "PREFIX: " before the message (for context added on the way up). */
ol_code ol_prefix(ol_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

ol_code ol_fail_nomem(ol_error *err, size_t bytes, const char *what);
/* Uses errno. */
ol_code ol_fail_errno(ol_error *err, const char *what, const char *path);

const char *ol_code_name(ol_code code);

/* Forwards a failure to the caller. */
#define OL_TRY(expr)                                                                               \
    do {                                                                                           \
        ol_code try_code_ = (expr);                                                                \
        if (try_code_ != OL_OK)                                                                    \
            return try_code_;                                                                      \
    } while (0)

#endif
