/*
 * keccak.c: see keccak.h. Keccak-f[1600] as the reference describes it: 24 rounds over 5x5
 * lanes of 64 bits, lane (x, y) at 5 * y + x.
 */
#include "base/keccak.h"

#include <string.h>

#define LANES 25
#define RATE 136 /* bytes absorbed at a time: 200 less twice the digest */

static uint64_t rotate(uint64_t x, unsigned n)
{
    return n ? x << n | x >> (64 - n) : x;
}

static void theta(uint64_t a[LANES])
{
    uint64_t column[5];

    for (int x = 0; x < 5; x++)
        column[x] = a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20];
    for (int x = 0; x < 5; x++) {
        uint64_t d = column[(x + 4) % 5] ^ rotate(column[(x + 1) % 5], 1);

        for (int y = 0; y < LANES; y += 5)
            a[y + x] ^= d;
    }
}

/* One walk over the 24 lanes that move; the offsets are the triangular numbers. */
static void rho_and_pi(uint64_t a[LANES])
{
    uint64_t moving = a[1];
    int x = 1, y = 0;

    for (unsigned t = 0; t < 24; t++) {
        int next = (2 * x + 3 * y) % 5;
        uint64_t kept;

        x = y;
        y = next;
        kept = a[5 * y + x];
        a[5 * y + x] = rotate(moving, (t + 1) * (t + 2) / 2 % 64);
        moving = kept;
    }
}

static void chi(uint64_t a[LANES])
{
    for (int y = 0; y < LANES; y += 5) {
        uint64_t row[5];

        memcpy(row, a + y, sizeof(row));
        for (int x = 0; x < 5; x++)
            a[y + x] = row[x] ^ (~row[(x + 1) % 5] & row[(x + 2) % 5]);
    }
}

/* The round constants come from a shift register of 8 bits. */
static uint64_t next_constant(uint8_t *shift)
{
    uint64_t constant = 0;

    for (unsigned j = 0; j < 7; j++) {
        if (*shift & 1)
            constant |= UINT64_C(1) << ((1u << j) - 1);
        *shift = (uint8_t)(*shift << 1 ^ (*shift >> 7) * 0x71);
    }
    return constant;
}

static void permute(uint64_t a[LANES])
{
    uint8_t shift = 1;

    for (int round = 0; round < 24; round++) {
        theta(a);
        rho_and_pi(a);
        chi(a);
        a[0] ^= next_constant(&shift);
    }
}

/* Lanes are little-endian, whatever the machine is. */
static void absorb(uint64_t a[LANES], const uint8_t block[RATE])
{
    for (int i = 0; i < RATE; i++)
        a[i / 8] ^= (uint64_t)block[i] << (8 * (i % 8));
    permute(a);
}

void ol_keccak256(const void *data, size_t length, uint8_t digest[OL_KECCAK_BYTES])
{
    const uint8_t *bytes = data;
    uint64_t state[LANES] = {0};
    uint8_t last[RATE] = {0};

    for (; length >= RATE; bytes += RATE, length -= RATE)
        absorb(state, bytes);
    if (length)
        memcpy(last, bytes, length);
    last[length] ^= 0x01;
    last[RATE - 1] ^= 0x80;
    absorb(state, last);
    for (int i = 0; i < OL_KECCAK_BYTES; i++)
        digest[i] = (uint8_t)(state[i / 8] >> (8 * (i % 8)));
}
