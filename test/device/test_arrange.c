/* test_arrange.c: what is done to an adapter when it is loaded: rows laid side by side, Gram
 * matrices, and memory that is used again. */
#include "rig.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_COLS 70
#define MAX_RANK 80

static void check_interleave(const cpu_kernels *kernels, rig_rng *rng, size_t size, int64_t n)
{
    uint8_t rows[PANEL][MAX_COLS * 4 + 4], out[MAX_COLS * PANEL * 4 + 64];
    const uint8_t *from[PANEL];
    size_t bytes = (size_t)n * PANEL * size;

    memset(out, 0xA5, sizeof(out));
    for (int lane = 0; lane < PANEL; lane++) {
        int shift = rig_below(rng, 4); /* rows lie anywhere */

        for (size_t i = 0; i < sizeof(rows[lane]); i++)
            rows[lane][i] = (uint8_t)rig_next(rng);
        from[lane] = rig_below(rng, 5) ? rows[lane] + shift : NULL;
    }
    kernels->interleave(from, size, n, out);
    for (size_t i = 0; i < bytes; i++) {
        size_t lane = i / size % PANEL, k = i / size / PANEL;

        assert_int_equal(out[i], from[lane] ? from[lane][k * size + i % size] : 0);
    }
    for (size_t i = bytes; i < sizeof(out); i++)
        assert_int_equal(out[i], 0xA5);
}

static void check_gram(const cpu_kernels *kernels, rig_rng *rng, int64_t n, int64_t ld)
{
    static float x[MAX_COLS * MAX_RANK], sums[MAX_RANK * MAX_RANK];

    rig_fill(rng, x, (size_t)(n * ld), 1);
    rig_fill(rng, sums, (size_t)(ld * ld), 1);
    for (int64_t i = 0; i < ld; i++)
        for (int64_t j = 0; j < ld; j++) /* it adds to what is there */
            sums[i * ld + j] = (float)(i + j);
    kernels->gram(x, n, ld, sums);
    for (int64_t i = 0; i < ld; i++)
        for (int64_t j = i; j < ld; j++) {
            double want = (double)(i + j);

            for (int64_t k = 0; k < n; k++)
                want += (double)x[k * ld + i] * (double)x[k * ld + j];
            assert_true(fabs((double)sums[i * ld + j] - want) < 1e-4 * (1 + fabs(want)));
        }
}

static void test_kernels(void **state)
{
    const char *const *isas = rig_isas();
    rig_rng rng = {7};

    (void)state;
    for (int i = 0; isas[i]; i++) {
        const cpu_kernels *kernels;
        ol_error err;

        assert_int_equal(cpu_kernels_choose(isas[i], &kernels, &err), OL_OK);
        for (int64_t n = 1; n <= MAX_COLS; n++) {
            check_interleave(kernels, &rng, 1, n);
            check_interleave(kernels, &rng, 2, n);
            check_interleave(kernels, &rng, 4, n);
        }
        for (int64_t ld = PANEL; ld <= MAX_RANK; ld += PANEL)
            for (int64_t n = 1; n <= MAX_COLS; n += 23)
                check_gram(kernels, &rng, n, ld);
    }
}

/* -- memory --------------------------------------------------------------------------------- */

#define MB ((size_t)1 << 20)

static void test_used_again(void **state)
{
    cpu_memory memory;
    ol_error err;
    uint8_t *large, *first, *second;

    (void)state;
    cpu_memory_init(&memory, 0);
    large = cpu_reused(&memory, 19 * MB, "a block", &err);
    assert_non_null(large);
    cpu_reused_free(&memory, large, 19 * MB);
    assert_int_equal(memory.used, 0);
    assert_int_equal(memory.spare, 20 * MB);
    first = cpu_reused(&memory, 7 * MB, "a block", &err); /* its first 8 MB */
    second = cpu_reused(&memory, 9 * MB, "a block", &err);
    assert_ptr_equal(first, large);
    assert_ptr_equal(second, large + 8 * MB);
    memset(first, 1, 7 * MB + 64);
    memset(second, 2, 9 * MB + 64);
    assert_int_equal(first[7 * MB], 1);
    assert_int_equal(memory.spare, 2 * MB);
    cpu_reused_free(&memory, first, 7 * MB);
    cpu_reused_free(&memory, second, 9 * MB);
    cpu_reused_free(&memory, NULL, 0);
    assert_int_equal(memory.spare, 20 * MB);
    cpu_memory_end(&memory);
}

/* A block takes the pages of several smaller ones, and another those that are left. */
static void test_put_together(void **state)
{
    cpu_memory memory;
    ol_error err;
    uint8_t *part[4], *large, *rest;

    (void)state;
    cpu_memory_init(&memory, 0);
    for (int i = 0; i < 4; i++) {
        part[i] = cpu_reused(&memory, 7 * MB, "a block", &err);
        assert_non_null(part[i]);
        memset(part[i], i + 1, 8 * MB);
    }
    for (int i = 0; i < 4; i++)
        cpu_reused_free(&memory, part[i], 7 * MB);
    assert_int_equal(memory.spare, 32 * MB);
    for (int round = 0; round < 3; round++) { /* of whole blocks first, then of single pages */
        large = cpu_reused(&memory, 21 * MB, "a block", &err);
        assert_non_null(large);
        assert_int_equal(memory.spare, 10 * MB);
        for (size_t page = 0; page < 22 && round == 0; page += 2)
            assert_true(large[page * MB] != 0);               /* not a fresh one */
        rest = cpu_reused(&memory, 11 * MB, "a block", &err); /* a fresh page, too */
        assert_non_null(rest);
        assert_int_equal(memory.spare, 0);
        memset(large, 5, 22 * MB);
        memset(rest, 6, 12 * MB);
        assert_true(large[0] == 5 && large[22 * MB - 1] == 5);
        cpu_reused_free(&memory, large, 21 * MB);
        cpu_reused_free(&memory, rest, 11 * MB);
        assert_int_equal(memory.spare, 34 * MB);
        large = cpu_reused(&memory, 33 * MB, "a block", &err);
        assert_non_null(large);
        assert_int_equal(memory.spare, 0);
        memset(large, 7, 33 * MB);
        cpu_reused_free(&memory, large, 33 * MB);
        large = cpu_reused(&memory, 1 * MB + 1, "a small one", &err);
        cpu_reused_free(&memory, large, 1 * MB + 1);
        rest = cpu_reused(&memory, 2 * MB, "a block", &err); /* of 4 MB, dropped below */
        cpu_block_free(&memory, rest, 2 * MB);
        assert_int_equal(memory.spare, 30 * MB);
        part[0] = cpu_reused(&memory, 39 * MB, "a block", &err); /* 10 MB are fresh */
        cpu_reused_free(&memory, part[0], 39 * MB);
        part[0] = cpu_reused(&memory, 7 * MB, "a block", &err);
        cpu_block_free(&memory, part[0], 7 * MB);
        assert_int_equal(memory.spare, 32 * MB);
    }
    cpu_memory_end(&memory);
}

/* Whatever comes and goes: the limit holds for spares, too, and they never stand in the way. */
static void test_limit(void **state)
{
    enum { BLOCKS = 24 };
    const size_t limit = 160 * MB;
    void *block[BLOCKS] = {NULL};
    size_t bytes[BLOCKS], sum = 0;
    bool reused[BLOCKS];
    cpu_memory memory;
    rig_rng rng = {3};
    ol_error err;

    (void)state;
    cpu_memory_init(&memory, limit);
    for (int i = 0; i < 4000; i++) {
        int b = rig_below(&rng, BLOCKS);

        if (block[b]) {
            assert_int_equal(*(uint8_t *)block[b], b);
            assert_int_equal(((uint8_t *)block[b])[bytes[b] + 63], b);
            (reused[b] ? cpu_reused_free : cpu_block_free)(&memory, block[b], bytes[b]);
            block[b] = NULL;
            sum -= bytes[b];
        } else {
            bytes[b] = 1 + (size_t)rig_next(&rng) % (30 * MB);
            reused[b] = rig_below(&rng, 4) > 0;
            block[b] = (reused[b] ? cpu_reused : cpu_block)(&memory, bytes[b], "a block", &err);
            assert_int_equal(block[b] != NULL, sum + bytes[b] <= limit);
            sum += block[b] ? bytes[b] : 0;
            for (size_t at = 0; block[b] && at < bytes[b]; at += MB)
                ((uint8_t *)block[b])[at] = ((uint8_t *)block[b])[bytes[b] + 63] = (uint8_t)b;
        }
        assert_int_equal(memory.used, sum);
        assert_true(memory.spare <= CPU_SPARE && memory.used + memory.spare <= limit);
    }
    for (int b = 0; b < BLOCKS; b++)
        (reused[b] ? cpu_reused_free : cpu_block_free)(&memory, block[b], bytes[b]);
    assert_null(cpu_reused(&memory, SIZE_MAX, "a block", &err));
    assert_null(cpu_reused(&memory, limit + 1, "a block", &err));
    assert_int_equal(memory.used, 0);
    cpu_memory_end(&memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels), cmocka_unit_test(test_used_again),
        cmocka_unit_test(test_put_together), cmocka_unit_test(test_limit)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
