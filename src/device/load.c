/* load.c: brings a device's shared object in. */
#include "device/device.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

ol_code ol_device_load(const char *dir, const char *name, const ol_device_table **table,
                       ol_error *err)
{
    char path[4096];
    void *handle;
    void *symbol;
    ol_device_entry entry;

    if ((size_t)snprintf(path, sizeof(path), "%s/openlora_%s.so", dir, name) >= sizeof(path))
        return ol_fail(err, OL_LIMIT, "path of device \"%s\" is too long", name);
    if (access(path, F_OK) != 0) {
        ol_fail(err, OL_NOT_FOUND, "there is no device \"%s\" here", name);
        ol_detail(err, "\"%s\" does not exist.", path);
        return ol_hint(err, "Devices lie beside the engine; a GPU's is built where nvcc is.");
    }
    handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        ol_fail(err, OL_DEVICE, "could not load device \"%s\"", name);
        return ol_detail(err, "%s", dlerror());
    }
    symbol = dlsym(handle, OL_DEVICE_SYMBOL);
    if (!symbol) {
        dlclose(handle);
        return ol_fail(err, OL_DEVICE, "\"%s\" is not an openlora device", path);
    }
    memcpy(&entry, &symbol, sizeof(entry)); /* ISO C has no cast for this */
    *table = entry();
    if (!*table || (*table)->abi != OL_DEVICE_ABI) {
        unsigned found = *table ? (*table)->abi : 0;

        dlclose(handle);
        ol_fail(err, OL_DEVICE, "device \"%s\" has interface version %u, the engine has %u", path,
                found, OL_DEVICE_ABI);
        return ol_hint(err, "Install the engine and its devices from the same build.");
    }
    return OL_OK;
}
