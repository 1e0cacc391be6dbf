#!/usr/bin/env python3
"""Prints the chained digest that test/unit/test_keccak.c holds: Keccak-256 from the
specification, with tables where the C code computes, checked against hashlib's SHA3-256,
which differs in the padding byte alone."""
import hashlib

ROTATIONS = [[0, 36, 3, 41, 18], [1, 44, 10, 45, 2], [62, 6, 43, 15, 61], [28, 55, 25, 21, 56], [27, 20, 39, 8, 14]]
CONSTANTS = [0x0000000000000001, 0x0000000000008082, 0x800000000000808A, 0x8000000080008000, 0x000000000000808B,
             0x0000000080000001, 0x8000000080008081, 0x8000000000008009, 0x000000000000008A, 0x0000000000000088,
             0x0000000080008009, 0x000000008000000A, 0x000000008000808B, 0x800000000000008B, 0x8000000000008089,
             0x8000000000008003, 0x8000000000008002, 0x8000000000000080, 0x000000000000800A, 0x800000008000000A,
             0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008]
MASK = (1 << 64) - 1


def rotate(x, n):
    return ((x << n) | (x >> (64 - n))) & MASK


def permute(a):
    for constant in CONSTANTS:
        c = [a[x][0] ^ a[x][1] ^ a[x][2] ^ a[x][3] ^ a[x][4] for x in range(5)]
        d = [c[(x - 1) % 5] ^ rotate(c[(x + 1) % 5], 1) for x in range(5)]
        a = [[a[x][y] ^ d[x] for y in range(5)] for x in range(5)]
        b = [[0] * 5 for _ in range(5)]
        for x in range(5):
            for y in range(5):
                b[y][(2 * x + 3 * y) % 5] = rotate(a[x][y], ROTATIONS[x][y])
        a = [[b[x][y] ^ (~b[(x + 1) % 5][y] & b[(x + 2) % 5][y] & MASK) for y in range(5)] for x in range(5)]
        a[0][0] ^= constant
    return a


def sponge(message, pad):
    block = bytearray(message) + bytes([pad]) + bytes(-(len(message) + 1) % 136)
    block[-1] ^= 0x80
    a = [[0] * 5 for _ in range(5)]
    for start in range(0, len(block), 136):
        for i in range(17):
            a[i % 5][i // 5] ^= int.from_bytes(block[start + 8 * i:start + 8 * i + 8], "little")
        a = permute(a)
    return b"".join(a[i % 5][i // 5].to_bytes(8, "little") for i in range(4))


digest = bytes(32)
for length in range(600):
    message = bytes((digest[i % 32] + i) & 255 for i in range(length))
    assert sponge(message, 6) == hashlib.sha3_256(message).digest()
    digest = sponge(message, 1)
print(digest.hex())
