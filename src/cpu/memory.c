/* memory.c: see memory.h. */
#include "cpu/memory.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define REGION ((size_t)32 << 20)
#define SLACK 64

struct cpu_region {
    cpu_region *next;
    uint8_t *data;
    size_t size, taken;
    int live;
};

static ol_code reserve(cpu_memory *memory, size_t bytes, const char *what, ol_error *err)
{
    size_t used = memory->used;

    if (bytes > SIZE_MAX / 4)
        return ol_fail_nomem(err, bytes, what);
    do {
        if (!memory->limit || (bytes <= memory->limit && used <= memory->limit - bytes))
            continue;
        ol_fail(err, OL_NOMEM, "the device's memory limit does not admit %s", what);
        return ol_detail(err, "It needs %zu bytes; %zu of %zu are in use.", bytes, used,
                         memory->limit);
    } while (!atomic_compare_exchange_weak(&memory->used, &used, used + bytes));
    return OL_OK;
}

/* -- system memory -------------------------------------------------------------------- */

/* Whole huge pages, aligned: the kernel backs an aligned stretch with one page where
 * it can. */
static uint8_t *map_huge(size_t bytes)
{
    uint8_t *at, *aligned;
    size_t before;

    at = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return NULL;
    before = (HUGE_PAGE - (uintptr_t)at % HUGE_PAGE) % HUGE_PAGE;
    aligned = at + before;
    if (before)
        munmap(at, before);
    if (before < HUGE_PAGE)
        munmap(aligned + bytes, HUGE_PAGE - before);
    madvise(aligned, bytes, MADV_HUGEPAGE);
    return aligned;
}

static size_t whole_pages(size_t bytes)
{
    return (bytes + SLACK + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
}

static bool is_mapped(size_t bytes)
{
    return bytes >= HUGE_PAGE;
}

static void *get(size_t bytes)
{
    void *at;

    if (is_mapped(bytes))
        return map_huge(whole_pages(bytes));
    at = aligned_alloc(64, cpu_align(bytes + SLACK));
    if (at)
        memset(at, 0, cpu_align(bytes + SLACK));
    return at;
}

static void put(void *at, size_t bytes)
{
    if (at && is_mapped(bytes))
        munmap(at, whole_pages(bytes));
    else
        free(at);
}

/* -- blocks ----------------------------------------------------------------------------- */

void *cpu_block(cpu_memory *memory, size_t bytes, const char *what, ol_error *err)
{
    void *at;

    if (reserve(memory, bytes, what, err) != OL_OK)
        return NULL;
    at = get(bytes);
    if (!at) {
        memory->used -= bytes;
        ol_fail_nomem(err, bytes, what);
    }
    return at;
}

void cpu_block_free(cpu_memory *memory, void *block, size_t bytes)
{
    if (!block)
        return;
    put(block, bytes);
    memory->used -= bytes;
}

/* -- regions ------------------------------------------------------------------------------ */

static cpu_region *add_region(cpu_memory *memory, size_t bytes)
{
    cpu_region *region = calloc(1, sizeof(*region));

    if (!region)
        return NULL;
    region->size = bytes > REGION - SLACK ? whole_pages(bytes) : REGION;
    region->data = map_huge(region->size);
    if (!region->data) {
        free(region);
        return NULL;
    }
    region->next = memory->regions;
    memory->regions = region;
    return region;
}

void *cpu_region_take(cpu_memory *memory, size_t bytes, const char *what, cpu_region **home,
                      ol_error *err)
{
    size_t rounded = cpu_align(bytes);
    cpu_region *region = memory->regions;

    if (reserve(memory, bytes, what, err) != OL_OK)
        return NULL;
    while (region && region->size - region->taken < rounded + SLACK)
        region = region->next;
    if (!region)
        region = add_region(memory, rounded);
    if (!region) {
        memory->used -= bytes;
        ol_fail_nomem(err, bytes, what);
        return NULL;
    }
    region->taken += rounded;
    region->live++;
    *home = region;
    return region->data + region->taken - rounded;
}

/* A region goes when its last weight does: weights come and go with their model. */
void cpu_region_give(cpu_memory *memory, cpu_region *home, size_t bytes)
{
    cpu_region **at = &memory->regions;

    if (!home)
        return;
    memory->used -= bytes;
    if (--home->live > 0)
        return;
    while (*at != home)
        at = &(*at)->next;
    *at = home->next;
    munmap(home->data, home->size);
    free(home);
}

/* -- scratch -------------------------------------------------------------------------------- */

ol_code cpu_scratch_need(cpu_memory *memory, cpu_scratch *scratch, size_t bytes, ol_error *err)
{
    void *data;

    if (bytes <= scratch->bytes)
        return OL_OK;
    cpu_scratch_free(memory, scratch);
    data = cpu_block(memory, bytes, "working memory", err);
    if (!data)
        return err->code;
    *scratch = (cpu_scratch){data, bytes};
    return OL_OK;
}

void cpu_scratch_free(cpu_memory *memory, cpu_scratch *scratch)
{
    cpu_block_free(memory, scratch->data, scratch->bytes);
    *scratch = (cpu_scratch){NULL, 0};
}
