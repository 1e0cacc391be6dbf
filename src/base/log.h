/*
 * log.h: messages for the operator, through one callback that the program sets.
 * Libraries of the engine report errors by value (status.h); this is for what
 * nobody asked but somebody wants to know: progress of a load, a fallback taken.
 */
#ifndef OL_BASE_LOG_H
#define OL_BASE_LOG_H

typedef enum ol_log_level { OL_LOG_DEBUG, OL_LOG_INFO, OL_LOG_WARNING, OL_LOG_ERROR } ol_log_level;

typedef void (*ol_log_fn)(ol_log_level level, const char *message, void *context);

/* NULL restores the default, which drops DEBUG and writes the rest to stderr. */
void ol_log_set(ol_log_fn fn, void *context);
void ol_log(ol_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
