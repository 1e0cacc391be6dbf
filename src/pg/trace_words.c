/* trace_words.c: words of a text: see trace.h. */
#include "trace.h"

#include "common/hashfn.h"

static bool is_space(unsigned char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool in_word(unsigned char c)
{
    return c >= 128 || (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

bool lora_trace_next(const char *text, int32 length, int64 seed, int32 *at, TraceWord *word)
{
    const unsigned char *bytes = (const unsigned char *)text;
    int32 start = *at, end;

    while (start < length && is_space(bytes[start]))
        start++;
    if (start >= length) {
        *at = length;
        return false;
    }
    end = start + 1;
    if (in_word(bytes[start]))
        while (end < length && in_word(bytes[end]))
            end++;
    word->start = start;
    word->end = end;
    word->token = (uint32)hash_bytes_extended(bytes + start, end - start, (uint64)seed);
    if (word->token == 0) /* which ends documents */
        word->token = 1;
    *at = end;
    return true;
}
