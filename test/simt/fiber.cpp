/* fiber.cpp: see fiber.h. x86-64 saves what a called function must keep; elsewhere ucontext
 * does it, with a system call each time. */
#include "fiber.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define FIBER_ASAN 1
extern "C" {
void __sanitizer_start_switch_fiber(void **save, const void *bottom, size_t size);
void __sanitizer_finish_switch_fiber(void *save, const void **bottom, size_t *size);
void __asan_unpoison_memory_region(void const volatile *addr, size_t size);
}
/* The stack that the processor's thread came with. */
static thread_local const void *home_bottom;
static thread_local size_t home_size;
static thread_local fiber *came_from;
#endif

#if defined(__x86_64__)

extern "C" void fiber_jump(void **save, void *to);
__asm__(".text\n"
        ".globl fiber_jump\n"
        ".type fiber_jump,@function\n"
        "fiber_jump:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp, (%rdi)\n"
        "  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
        "  retq\n"
        ".size fiber_jump,.-fiber_jump\n");

void fiber_reset(fiber *f, void (*start)())
{
    uintptr_t top = ((uintptr_t)f->stack + f->size) & ~(uintptr_t)15;
    void **sp = (void **)top;

#ifdef FIBER_ASAN
    __asan_unpoison_memory_region(f->stack, f->size);
    f->fake = NULL;
#endif
    *--sp = NULL; /* `start` has no caller; keeps the stack aligned as after a call */
    *--sp = (void *)start;
    for (int i = 0; i < 6; i++)
        *--sp = NULL;
    f->sp = sp;
}

static void jump(fiber *from, fiber *to)
{
    fiber_jump(&from->sp, to->sp);
}

#else
#include <ucontext.h>

void fiber_reset(fiber *f, void (*start)())
{
    ucontext_t *c = (ucontext_t *)f->sp;

    if (!c)
        f->sp = c = (ucontext_t *)calloc(1, sizeof(*c));
    getcontext(c);
    c->uc_stack.ss_sp = f->stack;
    c->uc_stack.ss_size = f->size;
    makecontext(c, start, 0);
}

static void jump(fiber *from, fiber *to)
{
    if (!from->sp)
        from->sp = calloc(1, sizeof(ucontext_t));
    swapcontext((ucontext_t *)from->sp, (ucontext_t *)to->sp);
}
#endif

void fiber_make(fiber *f, size_t size, void (*start)())
{
    memset(f, 0, sizeof(*f));
    f->stack = (char *)mmap(NULL, size, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f->stack == MAP_FAILED)
        abort();
    f->size = size;
    fiber_reset(f, start);
}

void fiber_free(fiber *f)
{
    munmap(f->stack, f->size);
#if !defined(__x86_64__)
    free(f->sp);
#endif
}

void fiber_entered()
{
#ifdef FIBER_ASAN
    const void *bottom;
    size_t size;

    __sanitizer_finish_switch_fiber(NULL, &bottom, &size);
    if (came_from && !came_from->stack) {
        home_bottom = bottom;
        home_size = size;
    }
#endif
}

void fiber_switch(fiber *from, fiber *to)
{
#ifdef FIBER_ASAN
    came_from = from;
    __sanitizer_start_switch_fiber(&from->fake, to->stack ? to->stack : home_bottom,
                                   to->stack ? to->size : home_size);
    jump(from, to);
    {
        const void *bottom;
        size_t size;

        __sanitizer_finish_switch_fiber(from->fake, &bottom, &size);
        if (from->stack && came_from && !came_from->stack) {
            home_bottom = bottom;
            home_size = size;
        }
    }
#else
    jump(from, to);
#endif
}
