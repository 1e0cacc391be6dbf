/* open_device.c: which device computes; found, loaded and opened. */
#include "engine/engine_internal.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The folder of the running executable: where devices are installed. */
static ol_code own_folder(char *out, size_t size, ol_error *err)
{
    ssize_t n = readlink("/proc/self/exe", out, size - 1);
    char *slash;

    if (n < 0)
        return ol_fail_errno(err, "could not read", "/proc/self/exe");
    out[n] = '\0';
    slash = strrchr(out, '/');
    if (slash)
        *slash = '\0';
    return OL_OK;
}

static ol_code load_device(ol_engine *engine, const ol_engine_options *o, const char *name,
                           ol_error *err)
{
    char folder[4096];

    if (o->device_dir)
        snprintf(folder, sizeof(folder), "%s", o->device_dir);
    else
        OL_TRY(own_folder(folder, sizeof(folder), err));
    return ol_device_load(folder, name, &engine->table, err);
}

static ol_code open_loaded(ol_engine *engine, const ol_engine_options *o, int index, ol_error *err)
{
    ol_device_options how = {.threads = o->threads,
                             .device_index = index,
                             .memory_limit = o->memory_limit,
                             .isa = o->isa,
                             .max_rows = engine->limits.step_tokens,
                             .max_seqs = engine->limits.max_seqs,
                             .max_logit_rows = engine->limits.max_logit_rows,
                             .adapters = o->adapters};

    return engine->table->open(&how, &engine->device, err);
}

static ol_code open_named(ol_engine *engine, const ol_engine_options *o, const char *name,
                          int index, ol_error *err)
{
    OL_TRY(load_device(engine, o, name, err));
    return open_loaded(engine, o, index, err);
}

/* A GPU when there is one; otherwise it is told why not, unless no device for it is installed. */
static ol_code open_best(ol_engine *engine, const ol_engine_options *o, ol_error *err)
{
    ol_code code = load_device(engine, o, "cuda", err);

    if (code == OL_NOT_FOUND)
        return open_named(engine, o, "cpu", 0, err);
    if (code == OL_OK)
        code = open_loaded(engine, o, 0, err);
    if (code == OL_OK)
        return OL_OK;
    ol_log(code == OL_NOT_FOUND ? OL_LOG_INFO : OL_LOG_WARNING,
           "the CPU computes, as no GPU can: %s. %s", err->message, err->detail);
    return open_named(engine, o, "cpu", 0, err);
}

ol_code open_device(ol_engine *engine, const ol_engine_options *o, ol_error *err)
{
    const char *name = o->device ? o->device : "auto";
    char *end;
    long index;

    if (strcmp(name, "auto") == 0)
        return open_best(engine, o, err);
    if (strcmp(name, "cpu") == 0)
        return open_named(engine, o, "cpu", 0, err);
    if (strcmp(name, "cuda") == 0)
        return open_named(engine, o, "cuda", 0, err);
    if (strncmp(name, "cuda:", 5) == 0 && name[5] >= '0' && name[5] <= '9') {
        index = strtol(name + 5, &end, 10);
        if (*end == '\0' && index <= 1023)
            return open_named(engine, o, "cuda", (int)index, err);
    }
    ol_fail(err, OL_INVALID, "there is no device \"%s\"", name);
    return ol_hint(err, "Devices are \"auto\", \"cpu\", \"cuda\" and \"cuda:N\".");
}
