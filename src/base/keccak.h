/*
 * keccak.h: Keccak-256 as Ethereum uses it: the sponge with the padding of before SHA-3
 * (first pad byte 0x01), which OpenSSL 3.0 does not have.
 */
#ifndef OL_KECCAK_H
#define OL_KECCAK_H

#include <stddef.h>
#include <stdint.h>

#define OL_KECCAK_BYTES 32

void ol_keccak256(const void *data, size_t length, uint8_t digest[OL_KECCAK_BYTES]);

#endif
