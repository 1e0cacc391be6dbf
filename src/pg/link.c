/* link.c: see link.h. */
#include "link.h"

#include "port/atomics.h"
#include "shared.h"
#include "storage/latch.h"
#include "storage/proc.h"

#define RING_BYTES ((Size)256 * 1024) /* of each */
#define NOBODY PG_UINT32_MAX

/* The rings follow, on cache lines of their own. */
struct LoraLinkMemory {
    pg_atomic_uint32 procno[2]; /* by side; NOBODY before it is there */
    pg_atomic_uint32 left[2];
};

#define HEADER_BYTES TYPEALIGN(PG_CACHE_LINE_SIZE, sizeof(LoraLinkMemory))

Size lora_link_bytes(void)
{
    return HEADER_BYTES + 2 * ol_ring_bytes(RING_BYTES);
}

static void wake(LoraLinkMemory *memory, LoraLinkSide side)
{
    uint32 procno = pg_atomic_read_u32(&memory->procno[side]);

    if (procno != NOBODY)
        SetLatch(&ProcGlobal->allProcs[procno].procLatch);
    else if (side == LORA_LINK_WORKER)
        (void)lora_wake_worker(); /* it has yet to join */
}

static void leave(dsm_segment *segment, Datum arg)
{
    LoraLinkMemory *memory = dsm_segment_address(segment);
    LoraLinkSide side = (LoraLinkSide)DatumGetInt32(arg);

    pg_atomic_write_u32(&memory->left[side], 1);
    pg_memory_barrier();
    wake(memory, side == LORA_LINK_BACKEND ? LORA_LINK_WORKER : LORA_LINK_BACKEND);
}

static void enter(LoraLink *link, dsm_segment *segment, LoraLinkSide side, int procno)
{
    LoraLinkMemory *memory = dsm_segment_address(segment);
    char *to_worker = (char *)memory + HEADER_BYTES;
    char *to_backend = to_worker + ol_ring_bytes(RING_BYTES);
    bool worker = side == LORA_LINK_WORKER;

    link->memory = memory;
    link->side = side;
    link->out = ol_ring_attach(worker ? to_backend : to_worker, RING_BYTES);
    link->in = ol_ring_attach(worker ? to_worker : to_backend, RING_BYTES);
    pg_atomic_write_u32(&memory->procno[side], (uint32)procno);
    on_dsm_detach(segment, leave, Int32GetDatum(side));
}

void lora_link_create(LoraLink *link, dsm_segment *segment, int procno)
{
    LoraLinkMemory *memory = dsm_segment_address(segment);
    char *rings = (char *)memory + HEADER_BYTES;

    for (int side = 0; side < 2; side++) {
        pg_atomic_init_u32(&memory->procno[side], NOBODY);
        pg_atomic_init_u32(&memory->left[side], 0);
        ol_ring_init(rings + (Size)side * ol_ring_bytes(RING_BYTES), RING_BYTES);
    }
    enter(link, segment, LORA_LINK_BACKEND, procno);
}

void lora_link_join(LoraLink *link, dsm_segment *segment, int procno)
{
    enter(link, segment, LORA_LINK_WORKER, procno);
}

static LoraLinkSide other_side(const LoraLink *link)
{
    return link->side == LORA_LINK_BACKEND ? LORA_LINK_WORKER : LORA_LINK_BACKEND;
}

bool lora_link_put(LoraLink *link, const ol_frame *frame, const void *payload)
{
    return ol_ring_put(&link->out, frame, payload);
}

void lora_link_wake(LoraLink *link)
{
    wake(link->memory, other_side(link));
}

bool lora_link_left(const LoraLink *link)
{
    return pg_atomic_read_u32(&link->memory->left[other_side(link)]) != 0;
}

int lora_link_get(LoraLink *link, ol_frame *frame, uint8 *payload)
{
    int got = ol_ring_get(&link->in, frame, payload);

    if (got == 0 && lora_link_left(link)) {
        pg_memory_barrier(); /* it may have written before it left */
        got = ol_ring_get(&link->in, frame, payload);
        if (got == 0)
            got = -1;
    }
    if (got > 0 && ol_ring_room_awaited(&link->in))
        lora_link_wake(link);
    return got;
}
