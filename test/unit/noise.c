/* noise.c: see noise.h. */
#include "noise.h"

#include <stdint.h>

int pick(int n)
{
    static uint64_t state = 11;

    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int)((state >> 33) % (uint64_t)n);
}
