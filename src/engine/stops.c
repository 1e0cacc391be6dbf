/* stops.c: see stops.h. The pending text is never longer than the longest stop
 * string plus one piece, so plain searching is enough. */
#include "engine/stops.h"

#include <stdlib.h>
#include <string.h>

struct ol_stops {
    int n;
    size_t lens[OL_MAX_STOPS];
    char texts[OL_MAX_STOPS][OL_MAX_STOP_BYTES];
    ol_buf pending;
};

ol_code ol_stops_create(const ol_text *stops, int n, ol_stops **matcher, ol_error *err)
{
    ol_stops *m;

    if (n < 0 || n > OL_MAX_STOPS)
        return ol_fail(err, OL_LIMIT, "too many stop strings: %d", n);
    m = calloc(1, sizeof(*m));
    if (!m)
        return ol_fail_nomem(err, sizeof(*m), "stop strings");
    for (int i = 0; i < n; i++) {
        if (stops[i].len == 0 || stops[i].len > OL_MAX_STOP_BYTES) {
            free(m);
            return ol_fail(err, OL_INVALID, "stop string %d is empty or too long", i + 1);
        }
        m->lens[i] = stops[i].len;
        memcpy(m->texts[i], stops[i].data, stops[i].len);
    }
    m->n = n;
    *matcher = m;
    return OL_OK;
}

void ol_stops_free(ol_stops *m)
{
    if (!m)
        return;
    ol_buf_free(&m->pending);
    free(m);
}

/* Where the first stop string begins, or SIZE_MAX. */
static size_t find_stop(const ol_stops *m)
{
    const char *text = (const char *)m->pending.data;
    size_t first = SIZE_MAX;

    for (int i = 0; i < m->n && m->pending.len; i++) {
        const char *at = memmem(text, m->pending.len, m->texts[i], m->lens[i]);

        if (at && (size_t)(at - text) < first)
            first = (size_t)(at - text);
    }
    return first;
}

/* Length of the longest end of the pending text that begins a stop string. */
static size_t partial_len(const ol_stops *m)
{
    const uint8_t *end = m->pending.data + m->pending.len;
    size_t longest = 0;

    for (int i = 0; i < m->n; i++) {
        size_t len = m->lens[i] - 1 < m->pending.len ? m->lens[i] - 1 : m->pending.len;

        for (; len > longest; len--)
            if (memcmp(end - len, m->texts[i], len) == 0)
                longest = len;
    }
    return longest;
}

static void release(ol_stops *m, size_t len, ol_buf *out)
{
    ol_buf_put(out, m->pending.data, len);
    memmove(m->pending.data, m->pending.data + len, m->pending.len - len);
    m->pending.len -= len;
}

bool ol_stops_feed(ol_stops *m, const char *text, size_t len, ol_buf *out)
{
    size_t at;

    if (m->n == 0) {
        ol_buf_put(out, text, len);
        return false;
    }
    ol_buf_put(&m->pending, text, len);
    if (m->pending.failed)
        out->failed = true;
    if (m->pending.len == 0)
        return false;
    at = find_stop(m);
    if (at != SIZE_MAX) {
        release(m, at, out);
        ol_buf_reset(&m->pending);
        return true;
    }
    release(m, m->pending.len - partial_len(m), out);
    return false;
}

void ol_stops_flush(ol_stops *m, ol_buf *out)
{
    if (m->pending.len)
        release(m, m->pending.len, out);
}
