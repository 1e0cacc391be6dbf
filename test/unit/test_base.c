/* test_base.c: error values, arenas, buffers, number formats, files and digests. */
#include "base/arena.h"
#include "base/buf.h"
#include "base/file.h"
#include "base/spares.h"
#include "base/tensor.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void test_errors_are_cut_between_characters(void **state)
{
    ol_error err;
    char text[1000];

    (void)state;
    for (size_t i = 0; i < 498; i++)
        memcpy(text + 2 * i, "\xC3\xA9", 2);
    text[996] = '\0';
    assert_int_equal(ol_fail(&err, OL_CORRUPT, "x%s", text), OL_CORRUPT);
    assert_int_equal(strlen(err.message) % 2, 1); /* x and whole characters */
    assert_int_equal(ol_fail(&err, OL_CORRUPT, "%s", text), OL_CORRUPT);
    assert_int_equal(strlen(err.message) % 2, 0);
    ol_fail(&err, OL_LIMIT, "inner");
    ol_detail(&err, "d");
    assert_int_equal(ol_prefix(&err, "file %d", 7), OL_LIMIT);
    assert_string_equal(err.message, "file 7: inner");
    assert_string_equal(err.detail, "d");
    assert_string_equal(ol_code_name(OL_INTERNAL), "internal");
    assert_string_equal(ol_code_name((ol_code)99), "unknown");
}

static ol_buf room_of(size_t bytes)
{
    ol_buf buf = {0};

    assert_true(ol_buf_reserve(&buf, bytes));
    return buf;
}

static void test_spares(void **state)
{
    ol_spares spares = {.most = 3 << 20};
    ol_buf buf = ol_spares_take(&spares), small = room_of(1000), large = room_of(600000);
    uint8_t *at = large.data;

    (void)state;
    assert_null(buf.data);
    ol_spares_give(&spares, &buf); /* nothing: fine */
    ol_spares_give(&spares, &large);
    ol_spares_give(&spares, &small);
    assert_null(large.data);
    large = ol_spares_take(&spares);
    assert_ptr_equal(large.data, at); /* the largest, empty */
    assert_int_equal(large.len, 0);
    assert_true(large.cap >= 600000 && spares.n == 1 && spares.bytes < 600000);
    buf = room_of(1 << 22);
    ol_spares_give(&spares, &buf); /* more than is ever kept */
    assert_int_equal(spares.n, 1);
    ol_spares_give(&spares, &large);
    for (int i = 0; i < 40; i++) { /* smaller ones do not push it out, and not all stay */
        buf = room_of(10000);
        ol_spares_give(&spares, &buf);
        assert_true(spares.n <= OL_SPARES && spares.bytes <= spares.most);
    }
    large = ol_spares_take(&spares);
    assert_ptr_equal(large.data, at);
    ol_buf_free(&large);
    ol_spares_drop(&spares);
    assert_true(spares.n == 0 && spares.bytes == 0);
}

static void test_arena(void **state)
{
    ol_arena *arena = ol_arena_create();
    size_t sizes[] = {0, 1, 15, 300, 70000, 8, 1 << 20, 17};

    (void)state;
    assert_non_null(arena);
    for (int round = 0; round < 50; round++)
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
            unsigned char *p = ol_arena_alloc(arena, sizes[i]);

            assert_non_null(p);
            assert_int_equal((uintptr_t)p % (sizes[i] >= OL_ARENA_WIDE ? 64 : 16), 0);
            for (size_t k = 0; k < sizes[i]; k++)
                assert_int_equal(p[k], 0);
            memset(p, 0xEE, sizes[i]);
        }
    assert_null(ol_arena_array(arena, SIZE_MAX / 2, 3));
    assert_string_equal(ol_arena_strndup(arena, "hello", 3), "hel");
    ol_arena_destroy(arena);
}

static void test_buffer_and_reader(void **state)
{
    ol_buf buf = {0};
    ol_reader r;
    size_t len;
    const uint8_t *blob;

    (void)state;
    ol_buf_put_u8(&buf, 7);
    ol_buf_put_u32(&buf, 0xDEADBEEF);
    ol_buf_put_u64(&buf, 1ull << 60);
    ol_buf_put_f32(&buf, 1.5f);
    ol_buf_put_f64(&buf, -2.25);
    ol_buf_put_blob(&buf, "abc", 3);
    ol_buf_printf(&buf, "%s-%d", "x", 42);
    assert_false(buf.failed);
    r = ol_reader_over(buf.data, buf.len);
    assert_int_equal(ol_get_u8(&r), 7);
    assert_int_equal(ol_get_u32(&r), 0xDEADBEEF);
    assert_true(ol_get_u64(&r) == 1ull << 60);
    assert_true(ol_get_f32(&r) == 1.5f);
    assert_true(ol_get_f64(&r) == -2.25);
    blob = ol_get_blob(&r, &len);
    assert_int_equal(len, 3);
    assert_memory_equal(blob, "abc", 3);
    assert_memory_equal(ol_get(&r, 4), "x-42", 4);
    assert_false(r.bad);
    assert_int_equal(ol_get_u8(&r), 0);
    assert_true(r.bad);
    r = ol_reader_over("\xFF\xFF\xFF\xFFzz", 6); /* a blob longer than what is there */
    assert_null(ol_get_blob(&r, &len));
    assert_true(r.bad);
    ol_buf_free(&buf);
}

static void test_half_formats(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = ol_f16_to_f32((uint16_t)h);

        if (isnan(f))
            assert_true((ol_f32_to_f16(f) & 0x7C00) == 0x7C00 && (ol_f32_to_f16(f) & 0x3FF));
        else
            assert_int_equal(ol_f32_to_f16(f), h);
        f = ol_bf16_to_f32((uint16_t)h);
        if (!isnan(f))
            assert_int_equal(ol_f32_to_bf16(f), h);
    }
    assert_int_equal(ol_f32_to_f16(65504.0f), 0x7BFF);
    assert_int_equal(ol_f32_to_f16(65519.9f), 0x7BFF);
    assert_int_equal(ol_f32_to_f16(65520.0f), 0x7C00);
    assert_int_equal(ol_f32_to_f16(1.0f + 0x1p-11f), 0x3C00);            /* tie to even */
    assert_int_equal(ol_f32_to_f16(1.0f + 0x1p-11f + 0x1p-20f), 0x3C01); /* above the tie */
    assert_int_equal(ol_f32_to_f16(0x1p-25f), 0);                        /* tie to even */
    assert_int_equal(ol_f32_to_f16(0x1.8p-25f), 1);
    assert_int_equal(ol_f32_to_bf16(1.0f + 0x1p-8f), 0x3F80);
    assert_int_equal(ol_f32_to_bf16(1.0f + 0x1.8p-8f), 0x3F81);
}

static void test_shapes(void **state)
{
    int64_t n;
    size_t bytes;

    (void)state;
    assert_true(ol_shape_count((int64_t[]){3, 4, 5}, 3, &n) && n == 60);
    assert_false(ol_shape_count((int64_t[]){INT64_MAX, 2}, 2, &n));
    assert_false(ol_shape_count((int64_t[]){-1}, 1, &n));
    assert_true(ol_dtype_row_bytes(OL_Q4_K, 512, &bytes) && bytes == 288);
    assert_false(ol_dtype_row_bytes(OL_Q8_0, 33, &bytes));
    assert_false(ol_dtype_row_bytes(OL_F32, INT64_MAX, &bytes));
}

static void test_files_and_digests(void **state)
{
    char path[] = "/tmp/openlora-test-XXXXXX", hex[OL_DIGEST_HEX];
    int fd = mkstemp(path);
    ol_digest one, two;
    ol_sha256 *sha;
    ol_error err;
    ol_map map;

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "abc", 3), 3);
    close(fd);
    assert_int_equal(ol_map_open(path, &map, &err), OL_OK);
    ol_sha256_of(map.data, map.len, &one);
    ol_digest_hex(&one, hex); /* FIPS 180-2, appendix B.1 */
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    ol_map_close(&map);
    unlink(path);
    sha = ol_sha256_begin();
    ol_sha256_add(sha, "a", 1);
    ol_sha256_add(sha, "b", 1);
    assert_true(ol_sha256_so_far(sha, &two) && !ol_digest_equal(&one, &two));
    ol_sha256_add(sha, "c", 1);
    assert_true(ol_sha256_so_far(sha, &two) && ol_digest_equal(&one, &two));
    ol_sha256_end(sha, &two);
    assert_true(ol_digest_equal(&one, &two));
    assert_int_equal(ol_map_open(path, &map, &err), OL_NOT_FOUND);
    assert_non_null(strstr(err.message, path));
    assert_int_equal(ol_map_open("/tmp", &map, &err), OL_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors_are_cut_between_characters),
        cmocka_unit_test(test_arena),
        cmocka_unit_test(test_spares),
        cmocka_unit_test(test_buffer_and_reader),
        cmocka_unit_test(test_half_formats),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_files_and_digests),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
