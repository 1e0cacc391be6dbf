/*
 * engine_process.h: for tests of `openlora-engine serve` as its worker meets it: a process of its
 * own behind a channel. The test plays worker and backends.
 */
#ifndef TEST_ENGINE_PROCESS_H
#define TEST_ENGINE_PROCESS_H

#include "engine_util.h"

#include "wire/channel.h"
#include "wire/message.h"

#include <sys/types.h>

#define PROCESS_MODEL "llama"

typedef struct engine_process {
    ol_channel channel;
    pid_t pid;
} engine_process;

typedef struct process_frame {
    ol_frame frame;
    uint8_t payload[OL_FRAME_PAYLOAD];
} process_frame;

extern process_frame process_in; /* that came last */

/* With an option more, if not NULL. The test is skipped where model or program are not here. */
engine_process process_start(const char *model, const char *option, const char *value);
/* The same with the model of tests, when it can take requests. */
engine_process process_ready(const char *option, const char *value);
/* Its exit status, or the signal, negative; it is killed where it does not end. */
int process_wait(engine_process *p);
void process_shut_down(engine_process *p); /* in good order */

/* -- frames ------------------------------------------------------------------------------- */
void process_send(engine_process *p, uint32_t session, uint64_t tag, ol_frame_type type,
                  const ol_buf *payload);
void process_send_data(engine_process *p, uint32_t session, uint64_t tag, const void *bytes,
                       size_t len);
/* The next frame; false when the engine closed. Fails where none comes for minutes. */
bool process_receive(engine_process *p);
/* Skips frames of other types of session 0. */
void process_expect(engine_process *p, ol_frame_type type);
ol_engine_info process_expect_info(engine_process *p);
ol_error process_expect_error(engine_process *p, ol_frame_type type);
ol_event process_expect_event(engine_process *p, uint32_t session, uint64_t tag);
void process_expect_idle(engine_process *p);

/* -- requests ----------------------------------------------------------------------------- */
void process_send_request(engine_process *p, uint32_t session, uint64_t tag, const ol_request *q);
/* Of the folder `path`, under another digest if not NULL. */
void process_send_adapter(engine_process *p, uint32_t session, uint64_t tag, ol_frame_type type,
                          const char *path, const ol_digest *as);
/* Takes events until the last, which it returns; the text goes to `text`. */
ol_event process_run(engine_process *p, uint32_t session, uint64_t tag, ol_buf *text);

#endif
