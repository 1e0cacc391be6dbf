/* utf8.c: see utf8.h. */
#include "utf8.h"

#include "catalog/namespace.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* NULL: some character cannot be converted. What needs no change comes back as it is. */
static const char *convert(const char *from_text, Size length, int from, int to)
{
    Size room = length * MAX_CONVERSION_GROWTH + 1;
    char *converted;
    Oid conversion;

    if (from == to || length == 0)
        return from_text;
    if (from == PG_SQL_ASCII || to == PG_SQL_ASCII)
        return pg_encoding_verifymbstr(PG_UTF8, from_text, (int)length) == (int)length ? from_text
                                                                                       : NULL;
    conversion = FindDefaultConversionProc(from, to);
    if (!OidIsValid(conversion))
        return NULL;
    converted = MemoryContextAllocHuge(CurrentMemoryContext, room);
    if (pg_do_encoding_conversion_buf(conversion, from, to, (unsigned char *)from_text, (int)length,
                                      (unsigned char *)converted, (int)Min(room, PG_INT32_MAX),
                                      true) == (int)length)
        return repalloc(converted, strlen(converted) + 1);
    pfree(converted);
    return NULL;
}

const char *lora_to_utf8(const char *text)
{
    return pg_server_to_any(text, (int)strlen(text), PG_UTF8);
}

const char *lora_name_as_utf8(const char *name)
{
    const char *utf8 = convert(name, strlen(name), GetDatabaseEncoding(), PG_UTF8);
    char *ascii;

    if (utf8)
        return utf8;
    ascii = pstrdup(name);
    for (char *c = ascii; *c; c++)
        if (IS_HIGHBIT_SET(*c))
            *c = '?';
    return ascii;
}

const char *lora_from_utf8(const char *utf8)
{
    return pg_any_to_server(utf8, (int)strlen(utf8), PG_UTF8);
}

bool lora_utf8_argument(text *value, const char *what, const char **utf8, Size *length,
                        ol_error *error)
{
    char *local = VARDATA_ANY(value);
    Size limit = (Size)lora_max_prompt_size * 1024;

    *length = VARSIZE_ANY_EXHDR(value);
    *utf8 = convert(local, *length, GetDatabaseEncoding(), PG_UTF8);
    if (!*utf8) {
        ol_fail(error, OL_INVALID, "%s is not valid UTF-8", what);
        ol_detail(error, "The database's encoding is %s.", GetDatabaseEncodingName());
        return false;
    }
    if (*utf8 != local)
        *length = strlen(*utf8);
    if (*length <= limit)
        return true;
    ol_fail(error, OL_LIMIT, "%s is too long: %zu bytes", what, *length);
    ol_detail(error, "The limit is %zu bytes.", limit);
    ol_hint(error, "Shorten it, or raise openlora.max_prompt_size.");
    return false;
}

void lora_append_utf8(StringInfo out, const char *utf8, Size length)
{
    const char *nul;

    while ((nul = memchr(utf8, '\0', length)) != NULL) {
        Size before = (Size)(nul - utf8);

        appendBinaryStringInfo(out, utf8, (int)before);
        appendStringInfoString(out, "\xef\xbf\xbd");
        utf8 = nul + 1;
        length -= before + 1;
    }
    appendBinaryStringInfo(out, utf8, (int)length);
}

bool lora_has_characters(const char *utf8, Size length, ol_error *error)
{
    const char *local = convert(utf8, length, PG_UTF8, GetDatabaseEncoding());

    if (!local) {
        ol_fail(error, OL_UNSUPPORTED, "the answer has a character that encoding %s lacks",
                GetDatabaseEncodingName());
        ol_hint(error, "A database with the encoding UTF8 has all.");
        return false;
    }
    if (local != utf8)
        pfree((char *)local);
    return true;
}

text *lora_text_from_utf8(const char *utf8, Size length)
{
    char *local = pg_any_to_server(utf8, (int)length, PG_UTF8);

    return local == utf8 ? cstring_to_text_with_len(utf8, (int)length) : cstring_to_text(local);
}
