/* entry.c: see entry.h. */
#include "ledger/entry.h"

#include <stdlib.h>
#include <string.h>

void ol_entry_role(const ol_digest *salt, const char *name, ol_digest *role)
{
    ol_sha256 *sha = ol_sha256_begin();

    if (!sha)
        abort(); /* a few bytes: nothing sensible is left to do */
    ol_sha256_add(sha, salt->bytes, sizeof(salt->bytes));
    ol_sha256_add(sha, name, strlen(name));
    ol_sha256_end(sha, role);
}

static void put_text(ol_buf *out, const char *text)
{
    size_t len = strlen(text);

    out->failed |= len > UINT16_MAX;
    ol_buf_put_u16(out, (uint16_t)len);
    ol_buf_put(out, text, len);
}

static void put_digest(ol_buf *out, const ol_digest *digest)
{
    ol_buf_put(out, digest->bytes, sizeof(digest->bytes));
}

static void put_sampling(ol_buf *out, const ol_entry *e)
{
    ol_buf_put_f32(out, e->temperature);
    ol_buf_put_u32(out, (uint32_t)e->top_k);
    ol_buf_put_f32(out, e->top_p);
    ol_buf_put_f32(out, e->min_p);
    ol_buf_put_f32(out, e->repetition_penalty);
    ol_buf_put_f32(out, e->presence_penalty);
    ol_buf_put_f32(out, e->frequency_penalty);
    ol_buf_put_u32(out, (uint32_t)e->max_tokens);
    ol_buf_put_u8(out, e->ignore_eos);
    ol_buf_put_u64(out, e->seed);
}

static void put_adapters(ol_buf *out, const ol_entry *e)
{
    out->failed |= e->n_adapters < 0 || e->n_adapters > UINT16_MAX;
    ol_buf_put_u16(out, (uint16_t)e->n_adapters);
    for (int i = 0; i < e->n_adapters; i++) {
        put_digest(out, &e->adapters[i].digest);
        ol_buf_put_u64(out, (uint64_t)e->adapters[i].id);
        ol_buf_put_f64(out, e->adapters[i].weight);
        ol_buf_put_u32(out, e->adapters[i].share);
    }
}

void ol_entry_encode(const ol_entry *e, ol_buf *out)
{
    ol_buf_put_u8(out, OL_ENTRY_VERSION);
    ol_buf_put_u64(out, e->leaf);
    ol_buf_put_u64(out, (uint64_t)e->at_us);
    ol_buf_put_u32(out, e->database);
    put_digest(out, &e->role);
    ol_buf_put_u64(out, (uint64_t)e->inference);
    ol_buf_put_u32(out, e->attempt);
    ol_buf_put_u8(out, e->outcome);
    ol_buf_put_u8(out, e->task);
    put_digest(out, &e->base_model);
    put_text(out, e->device);
    ol_buf_put_u32(out, e->input_tokens);
    ol_buf_put_u32(out, e->cached_tokens);
    ol_buf_put_u32(out, e->output_tokens);
    put_sampling(out, e);
    put_adapters(out, e);
    put_digest(out, &e->prompt);
    put_digest(out, &e->output);
}
