/* message.c: adapters, texts and the engine itself: see message.h. Encoders and decoders stand in
 * pairs, field by field; fields.h has what they have in common. */
#include "wire/message.h"

#include "wire/fields.h"

#include <string.h>

/* -- adapters, texts --------------------------------------------------------- */

void ol_wire_put_adapter(ol_buf *buf, const ol_wire_adapter *a)
{
    ol_put_digest(buf, &a->digest);
    ol_buf_put_u64(buf, a->weights_len);
    ol_buf_put_u64(buf, a->config_len);
}

bool ol_wire_get_adapter(ol_reader *r, ol_wire_adapter *a)
{
    ol_get_digest(r, &a->digest);
    a->weights_len = ol_get_u64(r);
    a->config_len = ol_get_u64(r);
    return ol_reader_ended(r);
}

void ol_wire_put_facts(ol_buf *buf, const ol_adapter_facts *f)
{
    ol_put_digest(buf, &f->digest);
    ol_buf_put_u32(buf, (uint32_t)f->max_rank);
    ol_buf_put_u32(buf, (uint32_t)f->n_modules);
    ol_buf_put_u64(buf, (uint64_t)f->parameters);
    ol_buf_put_u64(buf, f->device_bytes);
    ol_buf_put_u32(buf, f->module_mask);
}

bool ol_wire_get_facts(ol_reader *r, ol_adapter_facts *f)
{
    ol_get_digest(r, &f->digest);
    f->max_rank = ol_get_count(r, INT32_MAX);
    f->n_modules = ol_get_count(r, INT32_MAX);
    f->parameters = (int64_t)ol_get_u64(r);
    f->device_bytes = (size_t)ol_get_u64(r);
    f->module_mask = ol_get_u32(r);
    return ol_reader_ended(r) && f->parameters >= 0;
}

void ol_wire_put_text_op(ol_buf *buf, const ol_wire_text_op *op)
{
    ol_buf_put_u8(buf, op->add_bos);
    ol_buf_put_u8(buf, op->parse_special);
    ol_buf_put_u8(buf, op->skip_special);
}

bool ol_wire_get_text_op(ol_reader *r, ol_wire_text_op *op)
{
    op->add_bos = ol_get_bool(r);
    op->parse_special = ol_get_bool(r);
    op->skip_special = ol_get_bool(r);
    return ol_reader_ended(r);
}

/* -- info -------------------------------------------------------------------- */

void ol_wire_put_info(ol_buf *buf, const ol_engine_info *i)
{
    const uint64_t counts[] = {i->steps,
                               i->prompt_tokens,
                               i->generated_tokens,
                               i->requests,
                               i->failed,
                               i->cancelled,
                               i->adapter_loads,
                               i->adapter_hits,
                               i->adapter_evictions,
                               i->cached_tokens,
                               i->rows,
                               i->sequences,
                               i->busy_us,
                               i->preemptions,
                               i->rejected,
                               i->adapter_copy_loads,
                               i->adapter_bytes,
                               i->adapter_copy_bytes,
                               (uint64_t)i->parameters,
                               i->device.memory_used,
                               i->device.memory_total};
    const int32_t numbers[] = {
        i->vocab,          i->hidden,        i->layers,         i->context,      i->kv_pages,
        i->kv_pages_free,  i->page_tokens,   i->running,        i->waiting,      i->adapters,
        i->device.threads, i->kv_pages_idle, i->adapter_copies, i->has_tokenizer};

    ol_put_string(buf, i->model_name);
    ol_put_string(buf, i->architecture);
    ol_put_string(buf, i->format);
    ol_put_digest(buf, &i->model_digest);
    ol_put_string(buf, i->device.name);
    ol_put_string(buf, i->device.description);
    for (size_t k = 0; k < sizeof(counts) / sizeof(counts[0]); k++)
        ol_buf_put_u64(buf, counts[k]);
    for (size_t k = 0; k < sizeof(numbers) / sizeof(numbers[0]); k++)
        ol_buf_put_u32(buf, (uint32_t)numbers[k]);
}

bool ol_wire_get_info(ol_reader *r, ol_engine_info *i)
{
    uint64_t *const counts[] = {&i->steps,
                                &i->prompt_tokens,
                                &i->generated_tokens,
                                &i->requests,
                                &i->failed,
                                &i->cancelled,
                                &i->adapter_loads,
                                &i->adapter_hits,
                                &i->adapter_evictions,
                                &i->cached_tokens,
                                &i->rows,
                                &i->sequences,
                                &i->busy_us,
                                &i->preemptions,
                                &i->rejected,
                                &i->adapter_copy_loads};
    int *const numbers[] = {
        &i->vocab,          &i->hidden,        &i->layers,        &i->context, &i->kv_pages,
        &i->kv_pages_free,  &i->page_tokens,   &i->running,       &i->waiting, &i->adapters,
        &i->device.threads, &i->kv_pages_idle, &i->adapter_copies};

    memset(i, 0, sizeof(*i));
    ol_get_string(r, i->model_name, sizeof(i->model_name));
    ol_get_string(r, i->architecture, sizeof(i->architecture));
    ol_get_string(r, i->format, sizeof(i->format));
    ol_get_digest(r, &i->model_digest);
    ol_get_string(r, i->device.name, sizeof(i->device.name));
    ol_get_string(r, i->device.description, sizeof(i->device.description));
    for (size_t k = 0; k < sizeof(counts) / sizeof(counts[0]); k++)
        *counts[k] = ol_get_u64(r);
    i->adapter_bytes = (size_t)ol_get_u64(r);
    i->adapter_copy_bytes = (size_t)ol_get_u64(r);
    i->parameters = (int64_t)ol_get_u64(r);
    i->device.memory_used = (size_t)ol_get_u64(r);
    i->device.memory_total = (size_t)ol_get_u64(r);
    for (size_t k = 0; k < sizeof(numbers) / sizeof(numbers[0]); k++)
        *numbers[k] = ol_get_count(r, INT32_MAX);
    i->has_tokenizer = ol_get_count(r, 1) == 1;
    return ol_reader_ended(r);
}
