/*
 * adapter_file.h: a LoRA adapter, from bytes that nobody vouches for to a plain,
 * validated list of modules that a device can take.
 *
 * Two forms: PEFT (the bytes of adapter_model.safetensors and the text of
 * adapter_config.json) and llama.cpp's GGUF adapters (no config text). The format is
 * told by the bytes. Everything that would change results and that we do not do is
 * refused by name; every tensor is consumed; every targeted module is complete.
 */
#ifndef OL_FORMATS_ADAPTER_FILE_H
#define OL_FORMATS_ADAPTER_FILE_H

#include "base/arena.h"
#include "engine/formats/adapter_bytes.h"
#include "engine/formats/model_config.h"

#define OL_MAX_RANK 512
#define OL_MAX_ADAPTER_CONFIG ((size_t)1024 * 1024)

typedef enum ol_adapter_format { OL_ADAPTER_PEFT, OL_ADAPTER_GGUF } ol_adapter_format;

typedef struct ol_adapter_file {
    ol_adapter_format format;
    int n_modules;                 /* at least 1 */
    const ol_lora_module *modules; /* by layer, then module; no duplicates */
    int n_layers;                  /* highest adapted layer + 1 */
    int max_rank;
    unsigned module_mask; /* bit ol_module */
    int64_t parameters;
    size_t tensor_bytes;    /* of all a and b */
    const char *base_model; /* base_model_name_or_path or general.base_model.0.name;
                             * information only; NULL when not given */
} ol_adapter_file;

/* Parses and validates. The modules point into the weights (which must outlive them) or
 * into the arena (tensors that had to be converted: unaligned ones, and q/k rows that
 * change order between the rotate-half and the interleaved RoPE layout to fit the
 * base). With base NULL (inspect) nothing is checked against a base and no order is
 * changed; the layers are then those up to the highest in the file. */
ol_code ol_adapter_file_parse(const ol_adapter_bytes *bytes, const ol_model_config *base,
                              ol_arena *arena, ol_adapter_file *out, ol_error *err);
/* The same; but quantised tensors, which become F32, take at most so many bytes, or none is read.
 */
ol_code ol_adapter_file_parse_within(const ol_adapter_bytes *bytes, const ol_model_config *base,
                                     size_t most, ol_arena *arena, ol_adapter_file *out,
                                     ol_error *err);

/* An adapter on disk, for the command line: a folder with adapter_config.json and
 * adapter_model.safetensors, or a .gguf file. */
typedef struct ol_adapter_disk {
    ol_map weights;
    ol_map config; /* empty for GGUF */
} ol_adapter_disk;

ol_code ol_adapter_disk_open(const char *path, ol_adapter_disk *disk, ol_error *err);
void ol_adapter_disk_close(ol_adapter_disk *disk);
/* Opens and parses. The modules live as long as both arena and disk. */
ol_code ol_adapter_read_path(const char *path, const ol_model_config *base, ol_arena *arena,
                             ol_adapter_disk *disk, ol_adapter_file *out, ol_error *err);

#endif
