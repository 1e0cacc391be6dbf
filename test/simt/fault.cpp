/*
 * fault.cpp: what goes wrong with the device, by OL_SIMT_FAULT:
 *
 *   no-device | driver | busy    there is none; it is for older programs; another process has it
 *   memory:BYTES                 the device has no more
 *   launch:N                     the launch after N others fails, and all calls from then on
 *   capture                      nothing can be recorded
 *   hold:N                       the launch after N others waits until somebody has opened FILE.go
 *                                for writing: a pipe
 *   @FILE                        one of these from a file, read when the process begins; after:N in
 *                                it is read at any time: the launch after N others from now on
 *                                fails; the file is removed
 *
 * OL_SIMT_STREAMS=late|early|mixed: simt_when.
 */
#include "runtime.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string>
#include <unistd.h>

unsigned long long simt_launches;
static const char *file;
static int hold_after = -1;

static bool read_file(char *text, size_t size)
{
    FILE *f = file ? fopen(file, "r") : NULL;
    size_t n = f ? fread(text, 1, size - 1, f) : 0;

    if (f)
        fclose(f);
    while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == ' '))
        n--;
    text[n] = '\0';
    return n > 0;
}

static void take(const char *fault)
{
    if (strcmp(fault, "no-device") == 0)
        simt_settings.absent = cudaErrorNoDevice;
    else if (strcmp(fault, "driver") == 0)
        simt_settings.absent = cudaErrorInsufficientDriver;
    else if (strcmp(fault, "busy") == 0)
        simt_settings.refusal = cudaErrorDevicesUnavailable;
    else if (strncmp(fault, "memory:", 7) == 0)
        simt_settings.memory = strtoull(fault + 7, NULL, 10);
    else if (strncmp(fault, "launch:", 7) == 0)
        simt_settings.fail_after = atoi(fault + 7);
    else if (strncmp(fault, "hold:", 5) == 0 && file)
        hold_after = atoi(fault + 5);
    else if (strcmp(fault, "capture") == 0)
        simt_settings.no_capture = 1;
    else if (strncmp(fault, "after:", 6) != 0 || !file) {
        fprintf(stderr, "simt: OL_SIMT_FAULT: there is no fault \"%s\"\n", fault);
        abort();
    }
}

void simt_read_faults()
{
    static bool done;
    const char *fault = getenv("OL_SIMT_FAULT"), *streams = getenv("OL_SIMT_STREAMS");
    char text[64];

    if (done)
        return;
    done = true;
    if (streams)
        simt_settings.streams = strcmp(streams, "early") == 0   ? SIMT_EARLY
                                : strcmp(streams, "mixed") == 0 ? SIMT_MIXED
                                                                : SIMT_LATE;
    if (fault && fault[0] == '@')
        file = fault + 1;
    if (fault && (!file || read_file(text, sizeof(text))))
        take(file ? text : fault);
}

static void hold()
{
    int pipe = open((std::string(file) + ".go").c_str(), O_RDONLY);

    if (pipe >= 0)
        close(pipe);
}

bool simt_fails_now()
{
    long long launch = (long long)simt_launches++;
    char text[64];

    if (launch == hold_after)
        hold();
    if (read_file(text, sizeof(text)) && strncmp(text, "after:", 6) == 0 && unlink(file) == 0)
        simt_settings.fail_after = (int)launch + atoi(text + 6);
    return simt_settings.fail_after >= 0 && launch >= simt_settings.fail_after;
}
