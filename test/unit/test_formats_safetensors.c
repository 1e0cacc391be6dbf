/* test_formats_safetensors.c: what the safetensors specification allows and forbids. */
#include "test_formats_util.h"

#include "engine/formats/safetensors.h"

static ol_code open_header(const char *header, size_t data_len, ol_error *err)
{
    ol_buf file = st_raw(header, data_len);
    ol_safetensors *st = NULL;
    ol_code code = ol_safetensors_bytes(file.data, file.len, "x.safetensors", 0, &st, err);

    if (code == OL_OK)
        ol_safetensors_close(st);
    ol_buf_free(&file);
    return code;
}

static void test_reading(void **state)
{
    st_builder b = {0};
    ol_buf file;
    ol_safetensors *st;
    ol_tensor t;
    ol_error err;

    (void)state;
    st_add(&b, "w.b", "BF16", 2, 3);
    st_add(&b, "w.a", "F32", 4, 0);
    st_add(&b, "w.c", "I64", 2, 0);
    file = st_end(&b);
    expect_ok(ol_safetensors_bytes(file.data, file.len, "x", 0, &st, &err), &err);
    assert_int_equal(ol_safetensors_count(st), 3);
    assert_string_equal(ol_safetensors_at(st, 0)->name, "w.a");
    assert_string_equal(ol_safetensors_at(st, 2)->dtype, "I64");
    expect_ok(ol_safetensors_get(st, "w.a", &t, &err), &err);
    assert_int_equal(t.dtype, OL_F32);
    assert_int_equal(t.n_dims, 1);
    assert_int_equal(t.shape[0], 4);
    assert_true(((const float *)t.data)[3] == 4.0f);
    expect_ok(ol_safetensors_get(st, "w.b", &t, &err), &err);
    assert_int_equal(t.dtype, OL_BF16);
    assert_int_equal(t.shape[1], 3);
    assert_int_equal(t.bytes, 12);
    expect_error(ol_safetensors_get(st, "w.c", &t, &err), OL_UNSUPPORTED, &err, "I64");
    expect_error(ol_safetensors_get(st, "w.d", &t, &err), OL_NOT_FOUND, &err, "w.d");
    assert_null(ol_safetensors_metadata(st, "format"));
    ol_safetensors_close(st);
    ol_buf_free(&file);
}

static void test_metadata_and_empty(void **state)
{
    ol_buf file = st_raw("{\"__metadata__\":{\"format\":\"pt\"},"
                         "\"z\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[0,0]},"
                         "\"s\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}  ",
                         4);
    ol_safetensors *st;
    ol_tensor t;
    ol_error err;

    (void)state;
    expect_ok(ol_safetensors_bytes(file.data, file.len, "x", 0, &st, &err), &err);
    assert_string_equal(ol_safetensors_metadata(st, "format"), "pt");
    expect_ok(ol_safetensors_get(st, "s", &t, &err), &err);
    assert_int_equal(t.n_dims, 0);
    expect_ok(ol_safetensors_get(st, "z", &t, &err), &err);
    assert_int_equal(t.bytes, 0);
    ol_safetensors_close(st);
    ol_buf_free(&file);
}

#define T(offsets) "{\"t\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":" offsets "}}"

static void test_hostile_headers(void **state)
{
    static const struct {
        const char *header;
        size_t data;
        const char *word;
    } cases[] = {
        {"[1]", 0, "not JSON"},
        {"{\"t\":", 0, "JSON"},
        {"{} x", 0, "JSON"},
        {"{}", 4, "no tensor"},
        {"{\"t\":5}", 0, "description"},
        {T("[0,16]"), 12, "past the end"},
        {T("[0,16]"), 20, "no tensor"},
        {T("[4,20]"), 20, "hole"},
        {T("[0,12]"), 12, "size"},
        {T("[-4,12]"), 16, "data_offsets"},
        {T("[16,0]"), 16, "data_offsets"},
        {T("[0]"), 16, "data_offsets"},
        {T("[0,16,16]"), 16, "data_offsets"},
        {T("[0,\"16\"]"), 16, "data_offsets"},
        {T("[0,9223372036854775807]"), 16, "past the end"},
        {T("[0,99999999999999999999]"), 16, "JSON"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[-2,-2],\"data_offsets\":[0,16]}}", 16, "negative"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         "overflows"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[4611686018427387905],\"data_offsets\":[0,4]}}", 4,
         "overflows"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":4,\"data_offsets\":[0,16]}}", 16, "shape"},
        {"{\"t\":{\"dtype\":7,\"shape\":[4],\"data_offsets\":[0,16]}}", 16, "dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
         12, "overlaps"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, "duplicate"},
        {"{\"__metadata__\":7}", 0, "__metadata__"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__"},
    };
    ol_error err;

    (void)state;
    expect_ok(open_header(T("[0,16]"), 16, &err), &err);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        expect_error(open_header(cases[i].header, cases[i].data, &err), OL_CORRUPT, &err,
                     cases[i].word);
}

static void test_lengths(void **state)
{
    ol_buf file = st_raw(T("[0,16]"), 16);
    ol_safetensors *st = NULL;
    ol_error err;
    uint64_t beyond = file.len - 7;
    uint64_t huge[] = {UINT64_MAX, UINT64_MAX - 7, (uint64_t)1 << 63, file.len, 0, 1};

    (void)state;
    for (size_t len = 0; len < file.len; len++) {
        uint8_t *exact = malloc(len ? len : 1); /* so that a read past the end is seen */

        memcpy(exact, file.data, len);
        assert_int_equal(ol_safetensors_bytes(exact, len, "x", 0, &st, &err), OL_CORRUPT);
        free(exact);
    }
    expect_error(ol_safetensors_bytes(file.data, file.len, "x", 10, &st, &err), OL_CORRUPT, &err,
                 "too large");
    for (size_t i = 0; i < sizeof(huge) / sizeof(huge[0]); i++) {
        memcpy(file.data, &huge[i], 8);
        assert_int_equal(ol_safetensors_bytes(file.data, file.len, "x", 0, &st, &err), OL_CORRUPT);
    }
    memcpy(file.data, &beyond, 8);
    expect_error(ol_safetensors_bytes(file.data, file.len, "x", 0, &st, &err), OL_CORRUPT, &err,
                 "header length");
    ol_buf_free(&file);
}

static void test_deep_nesting(void **state)
{
    ol_buf header = {0};
    ol_error err;

    (void)state;
    ol_buf_printf(&header, "{\"t\":");
    for (int i = 0; i < 100000; i++)
        ol_buf_put(&header, "[", 1);
    ol_buf_put_u8(&header, 0);
    expect_error(open_header((const char *)header.data, 0, &err), OL_CORRUPT, &err, "JSON");
    ol_buf_free(&header);
}

static void write_shard(const char *folder, const char *file, const char *a, const char *b)
{
    st_builder builder = {0};
    ol_buf bytes;

    st_add(&builder, a, "F32", 2, 0);
    if (b)
        st_add(&builder, b, "F32", 2, 0);
    bytes = st_end(&builder);
    write_file(folder, file, bytes.data, bytes.len);
    ol_buf_free(&bytes);
}

static void test_shards(void **state)
{
    static const struct {
        const char *index, *word;
    } bad[] = {
        {"{}", "weight_map"},
        {"{\"weight_map\":{\"a\":\"../1.safetensors\"}}", "no valid name"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "no valid name"},
        {"{\"weight_map\":{\"a\":5}}", "no valid name"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"c\":\"2.safetensors\"}}", "b"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"1.safetensors\",\"c\":\"2.safetensors\","
         "\"d\":\"2.safetensors\"}}",
         "in no shard"},
    };
    char folder[64];
    ol_safetensors *st;
    ol_error err;

    (void)state;
    make_folder(folder);
    expect_error(ol_safetensors_open_folder(folder, &st, &err), OL_NOT_FOUND, &err, "safetensors");
    write_shard(folder, "1.safetensors", "a", "b");
    write_shard(folder, "2.safetensors", "c", NULL);
    expect_ok(ol_safetensors_open_folder(folder, &st, &err), &err);
    assert_int_equal(ol_safetensors_count(st), 3);
    ol_safetensors_close(st);
    write_text(folder, "model.safetensors.index.json",
               "{\"metadata\":{},\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"1.safetensors\","
               "\"c\":\"2.safetensors\"}}");
    expect_ok(ol_safetensors_open_folder(folder, &st, &err), &err);
    assert_int_equal(ol_safetensors_count(st), 3);
    assert_non_null(ol_safetensors_find(st, "c"));
    ol_safetensors_close(st);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        write_text(folder, "model.safetensors.index.json", bad[i].index);
        expect_error(ol_safetensors_open_folder(folder, &st, &err), OL_CORRUPT, &err, bad[i].word);
    }
    write_text(folder, "model.safetensors.index.json",
               "{\"weight_map\":{\"a\":\"9.safetensors\"}}");
    expect_error(ol_safetensors_open_folder(folder, &st, &err), OL_NOT_FOUND, &err,
                 "9.safetensors");
    write_shard(folder, "2.safetensors", "a", NULL);
    unlink(strcat(strcpy((char[128]){0}, folder), "/model.safetensors.index.json"));
    expect_error(ol_safetensors_open_folder(folder, &st, &err), OL_CORRUPT, &err, "two shards");
    remove_folder(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reading),         cmocka_unit_test(test_metadata_and_empty),
        cmocka_unit_test(test_hostile_headers), cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_deep_nesting),    cmocka_unit_test(test_shards),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
