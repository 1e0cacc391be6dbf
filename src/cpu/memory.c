/* memory.c: see memory.h. */
#include "cpu/memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define REGION ((size_t)32 << 20)
#define SLACK 64
#define MOST_MOVED ((size_t)32 << 30) /* in use; beyond, mappings of one page would be too many */

struct cpu_region {
    cpu_region *next;
    uint8_t *data;
    size_t size, taken;
    int live;
};

void cpu_memory_init(cpu_memory *memory, size_t limit)
{
    *memory = (cpu_memory){.limit = limit};
    pthread_mutex_init(&memory->lock, NULL);
}

/* -- spares ------------------------------------------------------------------------------ */

static void remove_spare(cpu_memory *memory, int i)
{
    memory->spare -= memory->spares[i].bytes;
    memory->n_spares--;
    memmove(memory->spares + i, memory->spares + i + 1,
            (size_t)(memory->n_spares - i) * sizeof(cpu_spare));
}

/* Oldest first, until `spare` bytes at most are left. */
static void drop_spares(cpu_memory *memory, size_t spare)
{
    while (memory->spare > spare) {
        munmap(memory->spares[0].at, memory->spares[0].bytes);
        remove_spare(memory, 0);
    }
}

static void use_spare(cpu_memory *memory, int i, size_t bytes)
{
    memory->spares[i].at += bytes;
    memory->spares[i].bytes -= bytes;
    memory->spare -= bytes;
    if (!memory->spares[i].bytes)
        remove_spare(memory, i);
}

/* The beginning of the smallest that is large enough, or NULL. */
static void *take_spare(cpu_memory *memory, size_t bytes)
{
    int best = -1;
    void *at;

    for (int i = 0; i < memory->n_spares; i++)
        if (memory->spares[i].bytes >= bytes &&
            (best < 0 || memory->spares[i].bytes < memory->spares[best].bytes))
            best = i;
    if (best < 0)
        return NULL;
    at = memory->spares[best].at;
    use_spare(memory, best, bytes);
    return at;
}

/* Keeps it when there is room for it; else it is the caller's to unmap. */
static bool keep_spare(cpu_memory *memory, void *at, size_t bytes)
{
    size_t room = CPU_SPARE;

    if (memory->limit && memory->limit - memory->used < room)
        room = memory->limit - memory->used;
    if (bytes > room)
        return false;
    drop_spares(memory, room - bytes);
    if (memory->n_spares == CPU_SPARES)
        drop_spares(memory, memory->spare - 1);
    memory->spares[memory->n_spares++] = (cpu_spare){at, bytes};
    memory->spare += bytes;
    return true;
}

void cpu_memory_end(cpu_memory *memory)
{
    drop_spares(memory, 0);
    pthread_mutex_destroy(&memory->lock);
}

/* -- the limit --------------------------------------------------------------------------- */

/* Counts them, and gives up spares for them. */
static ol_code reserve(cpu_memory *memory, size_t bytes, const char *what, ol_error *err)
{
    size_t used, limit = memory->limit;
    bool fits;

    if (bytes > SIZE_MAX / 4)
        return ol_fail_nomem(err, bytes, what);
    pthread_mutex_lock(&memory->lock);
    used = memory->used;
    fits = !limit || (bytes <= limit && used <= limit - bytes);
    if (fits) {
        memory->used = used + bytes;
        if (limit)
            drop_spares(memory, limit - used - bytes);
    }
    pthread_mutex_unlock(&memory->lock);
    if (fits)
        return OL_OK;
    ol_fail(err, OL_NOMEM, "the device's memory limit does not admit %s", what);
    return ol_detail(err, "It needs %zu bytes; %zu of %zu are in use.", bytes, used, limit);
}

static void release(cpu_memory *memory, size_t bytes)
{
    pthread_mutex_lock(&memory->lock);
    memory->used -= bytes;
    pthread_mutex_unlock(&memory->lock);
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

/* Moves spare pages into a fresh mapping, in the place of pages that nobody has touched yet. One
 * by one, since the system moves no more than one mapping at once, and a stretch may have become
 * several. Fails, with nothing left of the mapping, when the system does. */
static bool move_spares(cpu_memory *memory, uint8_t *at, size_t bytes)
{
    for (size_t done = 0; done < bytes && memory->n_spares > 0; done += HUGE_PAGE) {
        int newest = memory->n_spares - 1;

        if (mremap(memory->spares[newest].at, HUGE_PAGE, HUGE_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                   at + done) == MAP_FAILED) {
            munmap(at, done); /* what lay between may be another's by now */
            munmap(at + done + HUGE_PAGE, bytes - done - HUGE_PAGE);
            return false;
        }
        use_spare(memory, newest, HUGE_PAGE);
    }
    return true;
}

/* A mapping of spare pages, as far as they go, and fresh ones. */
static uint8_t *assemble(cpu_memory *memory, size_t bytes)
{
    uint8_t *at = map_huge(bytes);

    return at && move_spares(memory, at, bytes) ? at : NULL;
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
        release(memory, bytes);
        ol_fail_nomem(err, bytes, what);
    }
    return at;
}

void cpu_block_free(cpu_memory *memory, void *block, size_t bytes)
{
    if (!block)
        return;
    put(block, bytes);
    release(memory, bytes);
}

void *cpu_reused(cpu_memory *memory, size_t bytes, const char *what, ol_error *err)
{
    void *at = NULL;

    if (!is_mapped(bytes) || bytes > SIZE_MAX / 4)
        return cpu_block(memory, bytes, what, err);
    pthread_mutex_lock(&memory->lock);
    if (!memory->limit || memory->used + bytes <= memory->limit) {
        at = take_spare(memory, whole_pages(bytes));
        if (!at && memory->n_spares > 0 && memory->used < MOST_MOVED)
            at = assemble(memory, whole_pages(bytes));
    }
    memory->used += at ? bytes : 0;
    pthread_mutex_unlock(&memory->lock);
    return at ? at : cpu_block(memory, bytes, what, err);
}

void cpu_reused_free(cpu_memory *memory, void *block, size_t bytes)
{
    bool kept;

    if (!block || !is_mapped(bytes)) {
        cpu_block_free(memory, block, bytes);
        return;
    }
    pthread_mutex_lock(&memory->lock);
    memory->used -= bytes;
    kept = keep_spare(memory, block, whole_pages(bytes));
    pthread_mutex_unlock(&memory->lock);
    if (!kept)
        munmap(block, whole_pages(bytes));
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
        release(memory, bytes);
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
    release(memory, bytes);
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
