/* adapter_send.c: see adapter_send.h. */
#include "adapter_send.h"

LoraIo lora_adapter_send(uint64 tag, uint16 type, LoraAdapterReader *reader,
                         const ol_digest *digest)
{
    ol_wire_adapter adapter = {.weights_len = lora_adapter_length(reader)};
    char *chunk = palloc(OL_FRAME_PAYLOAD);
    Size n, config_len;
    const char *config = lora_adapter_config(reader, &config_len);
    LoraIo io = LORA_IO_OK;
    ol_buf *buf;

    lora_adapter_rewind(reader);
    while (io == LORA_IO_OK && (n = lora_adapter_read(reader, chunk, OL_FRAME_PAYLOAD)) > 0)
        io = lora_session_send(OL_FRAME_DATA, tag, chunk, (uint32)n);
    pfree(chunk);
    if (io == LORA_IO_OK)
        io = lora_session_upload(tag, config, config_len);
    if (io != LORA_IO_OK)
        return io;
    if (digest)
        adapter.digest = *digest;
    adapter.config_len = config_len;
    buf = lora_session_buffer();
    ol_wire_put_adapter(buf, &adapter);
    return lora_session_send(type, tag, buf->data, (uint32)buf->len);
}
