/* serve.h: the state of `serve`, shared by its loop (cmd_serve.c) and what it does with a
 * frame (serve_frames.c; serve_calls.c where it is a question with an answer). */
#ifndef OL_MAIN_SERVE_H
#define OL_MAIN_SERVE_H

#include "engine/engine.h"
#include "engine/main/outbox.h"
#include "engine/main/tags.h"

typedef struct server {
    ol_channel channel;
    outbox out;
    tag_table *tags;
    ol_engine *engine;
    size_t max_adapter_bytes; /* of one upload */
    size_t max_uploads;       /* of all together */
    size_t reading;           /* bytes of uploads that the engine is reading */
    bool shutdown;
} server;

/* A frame that arrived, its payload already ours. Whatever is wrong with it is answered,
 * never fatal. */
void serve_frame(server *s, const ol_frame *frame, const uint8_t *payload);
/* What came of adapters that the engine has read. */
void serve_results(server *s);
/* The engine's events to the sessions. */
void serve_events(server *s);
void serve_info(server *s);

/* A question about what the tag has uploaded, or about the engine. */
ol_code serve_call(server *s, const tag_entry *e, ol_reader *r, const ol_frame *frame,
                   ol_error *err);
ol_code serve_malformed(const ol_frame *frame, ol_error *err);

#endif
