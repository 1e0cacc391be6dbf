/*
 * trace.h: where do words of an answer occur verbatim in registered documents?
 *
 * A dataset's documents are one sequence of 32-bit tokens: each token is a word's hash under
 * a seed of the index's own (so that nobody can prepare words that collide), and a 0 ends
 * each document. Beside it lies its suffix array. Words, not the model's tokens: those
 * depend on what stands before a word, and on the model, which may be another tomorrow.
 *
 * Both arrays are rows of TRACE_CHUNK numbers, small enough to stay in their page, and the
 * first TRACE_FENCE tokens of the first suffix of every chunk are kept together, so that a
 * search reads one chunk of suffixes, and the tokens that its few comparisons there need.
 */
#ifndef LORA_TRACE_H
#define LORA_TRACE_H

#include "lora_pg.h"

#define TRACE_CHUNK 480
#define TRACE_FENCE 8
/* The sorter counts bytes in an int32. */
#define TRACE_MAX_TOKENS (INT64CONST(1) << 28)

typedef enum TracePart { TRACE_TOKENS, TRACE_SUFFIXES } TracePart;

typedef struct TraceWord {
    uint32 token;
    int32 start, end; /* bytes of the text */
} TraceWord;

/* The next word at or after *at: a run of ASCII letters, digits and bytes above 127, or any
 * other single byte; white space separates and is not compared. False at the end. */
extern bool lora_trace_next(const char *text, int32 length, int64 seed, int32 *at, TraceWord *word);

#endif
