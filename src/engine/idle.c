/* idle.c: see idle.h. */
#include "engine/idle.h"

void ol_adapter_list_remove(ol_adapter_list *list, ol_adapter *a)
{
    if (a->lru_prev)
        a->lru_prev->lru_next = a->lru_next;
    else
        list->oldest = a->lru_next;
    if (a->lru_next)
        a->lru_next->lru_prev = a->lru_prev;
    else
        list->newest = a->lru_prev;
    a->lru_prev = a->lru_next = NULL;
    list->n--;
}

void ol_adapter_list_append(ol_adapter_list *list, ol_adapter *a)
{
    a->lru_prev = list->newest;
    a->lru_next = NULL;
    if (list->newest)
        list->newest->lru_next = a;
    else
        list->oldest = a;
    list->newest = a;
    list->n++;
}

/* Those of `more` count as newer. */
static void join(ol_adapter_list *list, ol_adapter_list *more)
{
    if (!more->n)
        return;
    more->oldest->lru_prev = list->newest;
    if (list->newest)
        list->newest->lru_next = more->oldest;
    else
        list->oldest = more->oldest;
    list->newest = more->newest;
    list->n += more->n;
    *more = (ol_adapter_list){0};
}

void ol_idle_add(ol_idle *idle, ol_adapter *a, bool fresh)
{
    a->place = fresh ? OL_USES : a->uses;
    ol_adapter_list_append(&idle->by_uses[a->place], a);
}

void ol_idle_remove(ol_idle *idle, ol_adapter *a)
{
    ol_adapter_list_remove(&idle->by_uses[a->place], a);
}

ol_adapter *ol_idle_first(const ol_idle *idle)
{
    for (int uses = 0; uses <= OL_USES; uses++)
        if (idle->by_uses[uses].oldest)
            return idle->by_uses[uses].oldest;
    return NULL;
}

void ol_idle_halve(ol_idle *idle)
{
    for (int uses = 1; uses <= OL_USES; uses++)
        join(&idle->by_uses[uses / 2], &idle->by_uses[uses]);
}
