/*
 * weights.h: an opened base model, whatever its format: its description, and its
 * tensors by what they are for.
 */
#ifndef OL_FORMATS_WEIGHTS_H
#define OL_FORMATS_WEIGHTS_H

#include "base/file.h"
#include "engine/formats/gguf.h"
#include "engine/formats/model_config.h"

typedef struct ol_model_source ol_model_source;

/* What a tensor is for. Linear weights and biases are OL_ROLE_LINEAR + module and
 * OL_ROLE_BIAS + module. */
enum {
    OL_ROLE_EMBED,
    OL_ROLE_HEAD, /* with tied embeddings: the embedding */
    OL_ROLE_FINAL_NORM,
    OL_ROLE_ATTN_NORM, /* from here on per layer */
    OL_ROLE_MLP_NORM,
    OL_ROLE_Q_NORM,
    OL_ROLE_K_NORM,
    OL_ROLE_LINEAR,
    OL_ROLE_BIAS = OL_ROLE_LINEAR + OL_MODULES,
    OL_ROLE_COUNT = OL_ROLE_BIAS + OL_MODULES,
};

/* Whether a model of this description has such a tensor (biases, q_norm, head). */
bool ol_role_present(const ol_model_config *config, int role);
bool ol_role_per_layer(int role);
/* The shape it must have; returns the number of dims, 1 or 2. */
int ol_role_shape(const ol_model_config *config, int role, int64_t shape[2]);

typedef enum ol_model_kind { OL_MODEL_FOLDER, OL_MODEL_GGUF } ol_model_kind;

/* Opens a Hugging Face folder (config.json and *.safetensors) or a .gguf file. Reads
 * headers only. Fails when the description or a container is bad; missing or
 * misshapen tensors are reported by ol_model_source_check. */
ol_code ol_model_source_open(const char *path, ol_model_source **src, ol_error *err);
void ol_model_source_close(ol_model_source *src); /* NULL is fine */

ol_model_kind ol_model_source_kind(const ol_model_source *src);
const char *ol_model_source_path(const ol_model_source *src);
const ol_model_config *ol_model_source_config(const ol_model_source *src);
/* general.name of a GGUF, else the last part of the path. */
const char *ol_model_source_name(const ol_model_source *src);
/* "safetensors BF16", "GGUF Q8_0": the type that most weight bytes have. */
const char *ol_model_source_format(const ol_model_source *src);
int64_t ol_model_source_parameters(const ol_model_source *src);
/* Bytes of all tensors. */
size_t ol_model_source_bytes(const ol_model_source *src);
/* The GGUF file (for its vocabulary), or NULL for a folder. */
ol_gguf *ol_model_source_gguf(const ol_model_source *src);

/* The tensor of a role; `layer` is ignored for roles that are not per layer. The
 * shape has been checked, the data is aligned for its type (block types: 2 bytes) and
 * lives until close. Errors name the tensor: OL_NOT_FOUND (also when the description
 * has no such tensor), OL_CORRUPT (shape), OL_UNSUPPORTED (type). Norms and biases are
 * always F32, F16 or BF16. */
ol_code ol_model_source_tensor(ol_model_source *src, int role, int layer, ol_tensor *tensor,
                               ol_error *err);

/* One finding of a check. `fatal`: the model cannot be served. */
typedef void (*ol_report_fn)(void *context, bool fatal, const ol_error *finding);

/* Looks up every tensor that the description needs and reports all that is wrong, and
 * tensors that nothing asked for (fatal when they would change results, such as a
 * bias that the description denies). Returns the first fatal finding, in err too. */
ol_code ol_model_source_check(ol_model_source *src, ol_report_fn report, void *context,
                              ol_error *err);

/*
 * The model's digest: SHA-256 over
 *     "openlora.model.1" and a zero byte,
 *     the container kind as one byte (0 safetensors, 1 GGUF),
 *     the description: config.json with its length, or every GGUF key in file order
 *         (key, type, length, bytes),
 *     for each tensor in strcmp order of names: name length, name, type name length,
 *         type name, number of dims, dims outermost first, byte length, bytes,
 * all numbers as 8 bytes little-endian. So it does not depend on how a model is
 * sharded. It reads every byte (seconds on a big model); nothing is written beside the
 * model. progress may be NULL.
 */
ol_code ol_model_source_digest(ol_model_source *src, ol_progress_fn progress, void *context,
                               ol_digest *digest, ol_error *err);

#endif
