/* channel.c: see channel.h. */
#include "wire/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static size_t memory_bytes(void)
{
    return ol_ring_bytes(OL_CHANNEL_TO_ENGINE) + ol_ring_bytes(OL_CHANNEL_FROM_ENGINE);
}

static void *second_ring(void *memory)
{
    return (uint8_t *)memory + ol_ring_bytes(OL_CHANNEL_TO_ENGINE);
}

_Static_assert(OL_CHANNEL_TO_ENGINE % 64 == 0, "the second ring must be aligned");

ol_code ol_channel_create(ol_channel *channel, int *ring_fd, int *peer_wake_fd, ol_error *err)
{
    int pair[2];

    memset(channel, 0, sizeof(*channel));
    *ring_fd = memfd_create("openlora-rings", 0);
    if (*ring_fd < 0)
        return ol_fail_errno(err, "could not create shared memory", "openlora-rings");
    if (ftruncate(*ring_fd, (off_t)memory_bytes()) != 0) {
        ol_fail_errno(err, "could not size shared memory", "openlora-rings");
        close(*ring_fd);
        return err->code;
    }
    channel->memory = mmap(NULL, memory_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, *ring_fd, 0);
    if (channel->memory == MAP_FAILED || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) {
        ol_fail_errno(err, "could not set up the channel to", "openlora-engine");
        if (channel->memory != MAP_FAILED)
            munmap(channel->memory, memory_bytes());
        close(*ring_fd);
        return err->code;
    }
    ol_ring_init(channel->memory, OL_CHANNEL_TO_ENGINE);
    ol_ring_init(second_ring(channel->memory), OL_CHANNEL_FROM_ENGINE);
    channel->out = ol_ring_attach(channel->memory, OL_CHANNEL_TO_ENGINE);
    channel->in = ol_ring_attach(second_ring(channel->memory), OL_CHANNEL_FROM_ENGINE);
    channel->wake_fd = pair[0];
    *peer_wake_fd = pair[1];
    fcntl(pair[0], F_SETFD, FD_CLOEXEC);
    fcntl(pair[0], F_SETFL, O_NONBLOCK);
    fcntl(pair[1], F_SETFL, O_NONBLOCK);
    return OL_OK;
}

ol_code ol_channel_attach(ol_channel *channel, int ring_fd, int wake_fd, ol_error *err)
{
    struct stat st;

    memset(channel, 0, sizeof(*channel));
    if (fstat(ring_fd, &st) != 0 || (size_t)st.st_size != memory_bytes()) {
        ol_fail(err, OL_INVALID, "descriptor %d is not the channel's shared memory", ring_fd);
        return ol_hint(err, "\"serve\" is started by the extension's worker, not by hand.");
    }
    channel->memory = mmap(NULL, memory_bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, ring_fd, 0);
    if (channel->memory == MAP_FAILED)
        return ol_fail_errno(err, "could not map the channel's shared memory", "ring-fd");
    close(ring_fd);
    channel->in = ol_ring_attach(channel->memory, OL_CHANNEL_TO_ENGINE);
    channel->out = ol_ring_attach(second_ring(channel->memory), OL_CHANNEL_FROM_ENGINE);
    channel->wake_fd = wake_fd;
    fcntl(wake_fd, F_SETFD, FD_CLOEXEC);
    fcntl(wake_fd, F_SETFL, O_NONBLOCK);
    return OL_OK;
}

void ol_channel_close(ol_channel *channel)
{
    if (!channel->memory)
        return;
    munmap(channel->memory, memory_bytes());
    close(channel->wake_fd);
    memset(channel, 0, sizeof(*channel));
}

void ol_channel_wake(ol_channel *channel)
{
    ssize_t ignored;

    do /* a full socket buffer is wake-up enough */
        ignored = send(channel->wake_fd, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (ignored < 0 && errno == EINTR);
}

bool ol_channel_send(ol_channel *channel, const ol_frame *frame, const void *payload)
{
    if (!ol_ring_put(&channel->out, frame, payload))
        return false;
    if (ol_ring_wake_needed(&channel->out))
        ol_channel_wake(channel);
    return true;
}

int ol_channel_receive(ol_channel *channel, ol_frame *frame, uint8_t *payload)
{
    int got = ol_ring_get(&channel->in, frame, payload);

    if (got > 0 && ol_ring_room_awaited(&channel->in))
        ol_channel_wake(channel);
    return got;
}

bool ol_channel_may_sleep(ol_channel *channel)
{
    ol_ring_sleep(&channel->in);
    if (!ol_ring_has(&channel->in))
        return true;
    ol_ring_awake(&channel->in);
    return false;
}

bool ol_channel_woken(ol_channel *channel)
{
    char bytes[256];
    ssize_t n;

    ol_ring_awake(&channel->in);
    for (;;) {
        n = recv(channel->wake_fd, bytes, sizeof(bytes), MSG_DONTWAIT);
        if (n == (ssize_t)sizeof(bytes))
            continue;
        if (n > 0)
            return true; /* all that was there; an end shows the next time */
        if (n == 0)
            return false;
        if (errno != EINTR)
            return errno == EAGAIN || errno == EWOULDBLOCK;
    }
}
