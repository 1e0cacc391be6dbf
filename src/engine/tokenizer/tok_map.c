/*
 * tok_map.c: the two hash tables of a tokenizer, open addressing, made once.
 * Both are seeded by an address, so that a vocabulary cannot be written to collide.
 */
#include "engine/tokenizer/tok_internal.h"

#include <string.h>

static uint64_t mix(uint64_t h)
{
    h ^= h >> 33;
    h *= UINT64_C(0xff51afd7ed558ccd);
    h ^= h >> 33;
    h *= UINT64_C(0xc4ceb9fe1a85ec53);
    h ^= h >> 33;
    return h;
}

static uint64_t hash_bytes(const uint8_t *p, size_t len, uint64_t seed)
{
    uint64_t h = seed ^ (len * UINT64_C(0x9e3779b97f4a7c15)), word;

    for (; len >= 8; p += 8, len -= 8) {
        memcpy(&word, p, 8);
        h = mix(h ^ word);
    }
    word = 0;
    if (len > 0)
        memcpy(&word, p, len);
    return mix(h ^ word);
}

/* Slots for n entries at a load of at most 2/3; 0 on overflow. */
static size_t slots_for(size_t n)
{
    size_t slots = 16;

    if (n > SIZE_MAX / 64)
        return 0;
    while (slots / 3 * 2 <= n)
        slots *= 2;
    return slots;
}

bool tok_map_init(tok_map *map, ol_arena *arena, const ol_span *keys, size_t n)
{
    size_t slots = slots_for(n);

    if (slots == 0 || !(map->slots = ol_arena_array(arena, slots, sizeof(*map->slots))))
        return false;
    for (size_t i = 0; i < slots; i++)
        map->slots[i].id = OL_NO_TOKEN;
    map->keys = keys;
    map->mask = slots - 1;
    map->n = 0;
    map->seed = mix((uintptr_t)map->slots);
    return true;
}

static tok_map_slot *map_slot(const tok_map *map, const void *bytes, size_t len, uint32_t hash)
{
    for (size_t i = hash & map->mask;; i = (i + 1) & map->mask) {
        tok_map_slot *slot = &map->slots[i];
        const ol_span *key;

        if (slot->id == OL_NO_TOKEN)
            return slot;
        key = &map->keys[slot->id];
        if (slot->hash == hash && key->len == len && memcmp(key->data, bytes, len) == 0)
            return slot;
    }
}

int32_t tok_map_find(const tok_map *map, const void *bytes, size_t len)
{
    if (map->n == 0 || len == 0)
        return OL_NO_TOKEN;
    return map_slot(map, bytes, len, (uint32_t)hash_bytes(bytes, len, map->seed))->id;
}

int32_t tok_map_add(tok_map *map, int32_t id)
{
    const ol_span *key = &map->keys[id];
    uint32_t hash = (uint32_t)hash_bytes((const uint8_t *)key->data, key->len, map->seed);
    tok_map_slot *slot = map_slot(map, key->data, key->len, hash);

    if (slot->id != OL_NO_TOKEN)
        return slot->id;
    slot->hash = hash;
    slot->id = id;
    map->n++;
    return OL_NO_TOKEN;
}

bool tok_merges_init(tok_merges *merges, ol_arena *arena, size_t n)
{
    size_t slots = slots_for(n);

    if (slots == 0 || !(merges->slots = ol_arena_array(arena, slots, sizeof(*merges->slots))))
        return false;
    for (size_t i = 0; i < slots; i++)
        merges->slots[i].pair = UINT64_MAX;
    merges->mask = slots - 1;
    merges->seed = mix((uintptr_t)merges->slots);
    return true;
}

static tok_merge *merge_slot(const tok_merges *merges, uint64_t pair)
{
    for (size_t i = mix(pair ^ merges->seed) & merges->mask;; i = (i + 1) & merges->mask) {
        tok_merge *slot = &merges->slots[i];

        if (slot->pair == pair || slot->pair == UINT64_MAX)
            return slot;
    }
}

const tok_merge *tok_merges_find(const tok_merges *merges, int32_t left, int32_t right)
{
    const tok_merge *slot;

    if (merges->n == 0 || left < 0 || right < 0)
        return NULL;
    slot = merge_slot(merges, (uint64_t)(uint32_t)left << 32 | (uint32_t)right);
    return slot->pair == UINT64_MAX ? NULL : slot;
}

void tok_merges_add(tok_merges *merges, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    tok_merge *slot = merge_slot(merges, pair);

    if (slot->pair == pair)
        return;
    *slot = (tok_merge){.pair = pair, .rank = rank, .id = id};
    merges->n++;
}
