/* clock.c: see clock.h. */
#include "engine/clock.h"

#include <time.h>

uint64_t ol_now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}
