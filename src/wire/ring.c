/* ring.c: see ring.h. */
#include "wire/ring.h"

#include <stdatomic.h>
#include <string.h>

/* Writer's and reader's fields on lines of their own: no false sharing. */
struct ol_ring {
    _Alignas(64) _Atomic uint64_t written;
    _Alignas(64) _Atomic uint64_t read;
    _Atomic uint32_t sleeping; /* the reader waits on its descriptor */
    _Atomic uint32_t crowded;  /* the writer waits for room */
    _Alignas(64) uint8_t data[];
};

size_t ol_ring_bytes(size_t capacity)
{
    return sizeof(ol_ring) + capacity;
}

void ol_ring_init(void *memory, size_t capacity)
{
    memset(memory, 0, ol_ring_bytes(capacity));
}

ol_ring_end ol_ring_attach(void *memory, size_t capacity)
{
    return (ol_ring_end){.ring = memory, .position = 0, .capacity = capacity};
}

static void copy_in(ol_ring_end *end, uint64_t at, const void *bytes, size_t len)
{
    size_t offset = (size_t)(at & (end->capacity - 1));
    size_t first = end->capacity - offset < len ? (size_t)(end->capacity - offset) : len;

    memcpy(end->ring->data + offset, bytes, first);
    memcpy(end->ring->data, (const uint8_t *)bytes + first, len - first);
}

static void copy_out(const ol_ring_end *end, uint64_t at, void *bytes, size_t len)
{
    size_t offset = (size_t)(at & (end->capacity - 1));
    size_t first = end->capacity - offset < len ? (size_t)(end->capacity - offset) : len;

    memcpy(bytes, end->ring->data + offset, first);
    memcpy((uint8_t *)bytes + first, end->ring->data, len - first);
}

static bool has_room(const ol_ring_end *end, size_t need)
{
    uint64_t read = atomic_load_explicit(&end->ring->read, memory_order_acquire);
    uint64_t used = end->position - read; /* a reader ahead of us wraps to something huge */

    return used <= end->capacity && end->capacity - used >= need;
}

/* The fence pairs with the one in ol_ring_room_awaited: either we see the room in this second
 * look, or the reader sees that we wait for it. */
static bool has_room_after_all(ol_ring_end *end, size_t need)
{
    atomic_store_explicit(&end->ring->crowded, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    if (!has_room(end, need))
        return false;
    atomic_store_explicit(&end->ring->crowded, 0, memory_order_relaxed);
    return true;
}

bool ol_ring_put(ol_ring_end *end, const ol_frame *frame, const void *payload)
{
    size_t need = sizeof(*frame) + frame->length;

    if (frame->length > OL_FRAME_PAYLOAD ||
        (!has_room(end, need) && !has_room_after_all(end, need)))
        return false;
    copy_in(end, end->position, frame, sizeof(*frame));
    if (frame->length)
        copy_in(end, end->position + sizeof(*frame), payload, frame->length);
    end->position += need;
    atomic_store_explicit(&end->ring->written, end->position, memory_order_release);
    return true;
}

int ol_ring_get(ol_ring_end *end, ol_frame *frame, uint8_t *payload)
{
    uint64_t written = atomic_load_explicit(&end->ring->written, memory_order_acquire);
    uint64_t there = written - end->position;

    if (there == 0)
        return 0;
    if (there > end->capacity || there < sizeof(*frame))
        return -1;
    copy_out(end, end->position, frame, sizeof(*frame));
    if (frame->length > OL_FRAME_PAYLOAD || there - sizeof(*frame) < frame->length)
        return -1;
    copy_out(end, end->position + sizeof(*frame), payload, frame->length);
    end->position += sizeof(*frame) + frame->length;
    atomic_store_explicit(&end->ring->read, end->position, memory_order_release);
    return 1;
}

bool ol_ring_has(const ol_ring_end *reader)
{
    return atomic_load_explicit(&reader->ring->written, memory_order_acquire) != reader->position;
}

/* The fence pairs with the one in ol_ring_wake_needed: either the reader sees the
 * frame in its second look, or the writer sees that the reader sleeps. */
void ol_ring_sleep(ol_ring_end *reader)
{
    atomic_store_explicit(&reader->ring->sleeping, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
}

void ol_ring_awake(ol_ring_end *reader)
{
    atomic_store_explicit(&reader->ring->sleeping, 0, memory_order_relaxed);
}

bool ol_ring_wake_needed(ol_ring_end *writer)
{
    atomic_thread_fence(memory_order_seq_cst);
    return atomic_load_explicit(&writer->ring->sleeping, memory_order_relaxed) &&
           atomic_exchange_explicit(&writer->ring->sleeping, 0, memory_order_relaxed);
}

bool ol_ring_room_awaited(ol_ring_end *reader)
{
    uint64_t written;

    atomic_thread_fence(memory_order_seq_cst);
    if (!atomic_load_explicit(&reader->ring->crowded, memory_order_relaxed))
        return false;
    written = atomic_load_explicit(&reader->ring->written, memory_order_relaxed);
    return written - reader->position <= reader->capacity / 2 &&
           atomic_exchange_explicit(&reader->ring->crowded, 0, memory_order_relaxed);
}
