/* spares.c: see spares.h. Kept by size, the largest last. */
#include "base/spares.h"

#include <string.h>

static void remove_at(ol_spares *s, int i)
{
    s->bytes -= s->kept[i].cap;
    s->n--;
    memmove(s->kept + i, s->kept + i + 1, (size_t)(s->n - i) * sizeof(ol_buf));
}

static void free_smallest(ol_spares *s)
{
    ol_buf smallest = s->kept[0];

    remove_at(s, 0);
    ol_buf_free(&smallest);
}

ol_buf ol_spares_take(ol_spares *s)
{
    ol_buf buf = {0};

    if (s->n > 0) {
        buf = s->kept[s->n - 1];
        remove_at(s, s->n - 1);
    }
    return buf;
}

void ol_spares_give(ol_spares *s, ol_buf *buf)
{
    int at;

    if (s->n == OL_SPARES && s->kept[0].cap < buf->cap)
        free_smallest(s);
    if (!buf->data || s->n == OL_SPARES || buf->cap > s->most) {
        ol_buf_free(buf);
        return;
    }
    for (at = s->n; at > 0 && s->kept[at - 1].cap > buf->cap; at--)
        s->kept[at] = s->kept[at - 1];
    s->kept[at] = (ol_buf){.data = buf->data, .cap = buf->cap};
    s->n++;
    s->bytes += buf->cap;
    *buf = (ol_buf){0};
    while (s->bytes > s->most)
        free_smallest(s);
}

void ol_spares_drop(ol_spares *s)
{
    while (s->n > 0)
        free_smallest(s);
}
