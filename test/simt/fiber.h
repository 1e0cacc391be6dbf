/* fiber.h: stacks that take turns on one thread of the processor. */
#ifndef OL_TEST_SIMT_FIBER_H
#define OL_TEST_SIMT_FIBER_H

#include <stddef.h>

struct fiber {
    void *sp; /* where it left off */
    char *stack;
    size_t size;
    void *fake; /* AddressSanitizer's own stack of it */
};

/* A stack of `size` bytes on which `start` is going to run; start never returns. */
void fiber_make(fiber *f, size_t size, void (*start)());
void fiber_free(fiber *f);
/* Anew from `start`. */
void fiber_reset(fiber *f, void (*start)());
/* Leaves `from`, goes on where `to` left off. */
void fiber_switch(fiber *from, fiber *to);
/* The first thing that a fiber does. */
void fiber_entered();

#endif
