/* test_keccak.c: Keccak-256 against published digests, and at the edges of its block. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/keccak.h"

static const char *hex(const void *data, size_t length)
{
    static char text[2 * OL_KECCAK_BYTES + 1];
    uint8_t digest[OL_KECCAK_BYTES];

    ol_keccak256(data, length, digest);
    for (int i = 0; i < OL_KECCAK_BYTES; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    return text;
}

static void known_answers(void **state)
{
    (void)state;
    assert_string_equal(hex(NULL, 0),
                        "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470");
    assert_string_equal(hex("abc", 3),
                        "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45");
    /* the selector of ERC-20's transfer is the first four bytes, a9059cbb */
    assert_memory_equal(hex("transfer(address,uint256)", 25), "a9059cbb", 8);
}

/* Every digest is chained into the next message, whose length is around one and two blocks:
 * the last one is what the reference implementation in Python (test/data/make/keccak.py)
 * prints. */
static void lengths_around_the_block(void **state)
{
    uint8_t message[600] = {0}, digest[OL_KECCAK_BYTES] = {0};
    char last[2 * OL_KECCAK_BYTES + 1];

    (void)state;
    for (size_t length = 0; length < sizeof(message); length++) {
        for (size_t i = 0; i < length; i++)
            message[i] = (uint8_t)(digest[i % OL_KECCAK_BYTES] + i);
        ol_keccak256(message, length, digest);
    }
    for (int i = 0; i < OL_KECCAK_BYTES; i++)
        snprintf(last + 2 * i, 3, "%02x", digest[i]);
    assert_string_equal(last, "9b9cd8aad0f8274e51aefb832e2c0e0374b4447103d4da0989aa4f8004d0ea17");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),
        cmocka_unit_test(lengths_around_the_block),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
