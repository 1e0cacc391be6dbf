/* utf8.c: see utf8.h. */
#include "utf8.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

const char *lora_to_utf8(const char *text)
{
    return pg_server_to_any(text, (int)strlen(text), PG_UTF8);
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
    *utf8 = pg_server_to_any(local, (int)*length, PG_UTF8);
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

text *lora_text_from_utf8(const char *utf8, Size length)
{
    char *local = pg_any_to_server(utf8, (int)length, PG_UTF8);

    return local == utf8 ? cstring_to_text_with_len(utf8, (int)length) : cstring_to_text(local);
}
