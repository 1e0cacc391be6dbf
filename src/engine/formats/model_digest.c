/* model_digest.c: the digest of a model; its form is described in weights.h. */
#include "engine/formats/weights_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct hashing {
    ol_sha256 *sha;
    ol_progress_fn progress;
    void *context;
    size_t done, total;
} hashing;

static void add_number(hashing *h, uint64_t v)
{
    ol_sha256_add(h->sha, &v, sizeof(v));
}

static void add_text(hashing *h, const char *text)
{
    add_number(h, strlen(text));
    ol_sha256_add(h->sha, text, strlen(text));
}

static void add_data(hashing *h, const void *data, size_t bytes)
{
    const size_t piece = (size_t)16 << 20;

    add_number(h, bytes);
    for (size_t at = 0; at < bytes; at += piece) {
        size_t n = bytes - at < piece ? bytes - at : piece;

        ol_sha256_add(h->sha, (const uint8_t *)data + at, n);
        h->done += n;
        if (h->progress)
            h->progress(h->context, h->done, h->total);
    }
}

static void add_description(const ol_model_source *src, hashing *h)
{
    if (!src->gguf) {
        add_number(h, src->config_file.len);
        ol_sha256_add(h->sha, src->config_file.data, src->config_file.len);
        return;
    }
    for (size_t i = 0; i < ol_gguf_entries(src->gguf); i++) {
        const ol_gguf_entry *e = ol_gguf_entry_at(src->gguf, i);

        add_text(h, e->key);
        add_number(h, (uint64_t)e->type);
        add_number(h, e->bytes);
        ol_sha256_add(h->sha, e->data, e->bytes);
    }
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const ol_safetensors_entry *)a)->name, ((const ol_safetensors_entry *)b)->name);
}

static ol_code add_tensors(const ol_model_source *src, hashing *h, ol_error *err)
{
    size_t n = ol_source_count(src);
    ol_safetensors_entry *list = calloc(n + 1, sizeof(*list));

    if (!list)
        return ol_fail_nomem(err, n * sizeof(*list), "the model's digest");
    for (size_t i = 0; i < n; i++)
        list[i] = ol_source_at(src, i);
    qsort(list, n, sizeof(*list), by_name);
    for (size_t i = 0; i < n; i++) {
        add_text(h, list[i].name);
        add_text(h, list[i].dtype);
        add_number(h, (uint64_t)list[i].n_dims);
        for (int d = 0; d < list[i].n_dims && d < OL_MAX_DIMS; d++)
            add_number(h, (uint64_t)list[i].shape[d]);
        add_data(h, list[i].data, list[i].bytes);
    }
    free(list);
    return OL_OK;
}

ol_code ol_model_source_digest(ol_model_source *src, ol_progress_fn progress, void *context,
                               ol_digest *digest, ol_error *err)
{
    static const char tag[] = "openlora.model.1"; /* its zero byte counts */
    hashing h = {.sha = ol_sha256_begin(), .progress = progress, .context = context};
    uint8_t kind = src->kind == OL_MODEL_GGUF;
    ol_code code;

    if (!h.sha)
        return ol_fail_nomem(err, 0, "the model's digest");
    h.total = ol_model_source_bytes(src);
    ol_sha256_add(h.sha, tag, sizeof(tag));
    ol_sha256_add(h.sha, &kind, 1);
    add_description(src, &h);
    code = add_tensors(src, &h, err);
    ol_sha256_end(h.sha, digest);
    return code;
}
