/* vocab.h: the tokenizer that comes with a model. */
#ifndef OL_ENGINE_VOCAB_H
#define OL_ENGINE_VOCAB_H

#include "engine/formats/weights.h"
#include "engine/tokenizer/tokenizer.h"

/* *tok is NULL when the model brings none. One that we cannot follow exactly is an
 * error. */
ol_code ol_vocab_of_model(const ol_model_source *source, ol_tokenizer **tok, ol_error *err);

/* From the keys tokenizer.ggml.* of a GGUF file, which may hold nothing else. */
ol_code ol_vocab_of_gguf(ol_gguf *gguf, ol_tokenizer **tok, ol_error *err);

/* From any path: a model folder, a GGUF file, or a file that only ol_tokenizer_from_file
 * knows. OL_NOT_FOUND when there is no tokenizer. */
ol_code ol_vocab_of_path(const char *path, ol_tokenizer **tok, ol_error *err);

#endif
