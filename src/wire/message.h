/*
 * message.h: what travels between backend, worker and engine.
 *
 * Every frame has a header (ring.h) and a payload in little-endian, length-prefixed
 * fields. Between backend and worker the same frames lie in rings of a DSM segment; the
 * worker routes by the header alone and parses no payload but of frames addressed to
 * itself (session 0, and RECEIPT), a REQUEST's meter, and the kind of an EVENT.
 *
 * Long things (prompts, adapters, texts) are uploaded in DATA frames that append to
 * the tag's upload buffer in the engine; the frame that follows consumes it:
 *
 *   backend -> engine
 *     DATA*, REQUEST        upload = prompt, then completion
 *     DATA*, ADAPTER        upload = weights, then config; answers NEED_ADAPTER
 *     DATA*, ADAPTER_CHECK  the same, on its own: answered by ADAPTER_FACTS or FAILED
 *     DATA*, TOKENIZE       upload = text; answered by DATA* (ids as u32), END
 *     DATA*, DETOKENIZE     upload = ids as u32; answered by DATA* (text), END
 *     STATS                 which (stats.h); answered by DATA* (rows), END
 *     CANCEL                drops the tag: its upload, its request. No answer.
 *   worker -> engine
 *     SESSION_END           the session's requests and uploads are dropped
 *     STATUS                answered by INFO on session 0
 *     SHUTDOWN              the engine exits with status 0
 *   engine -> backend
 *     EVENT                 an ol_event of the tag
 *     ADAPTER_FACTS, DATA, END, FAILED (FAILED: any tag that is no request)
 *   engine -> worker (session 0)
 *     PROGRESS              loading: done and total, u64 each
 *     INFO                  ol_engine_info: once after loading (the engine is ready),
 *                           and on STATUS
 *     BROKEN                loading failed: an ol_error; the engine then exits
 *     LOG                   level u8, text
 *   engine -> worker (with the address of a request)
 *     RECEIPT               the OL_EVENT_USAGE of a metered request, before its last event, and
 *                           now and then before that; its meter, which the worker has, is empty
 *   worker -> backend
 *     LOST                  an engine went away, and with it every tag that was sent to it;
 *                           the header's tag is its generation. (From a backend the
 *                           header's session says for which generation a frame is meant.)
 *
 * A decoder returns false on anything malformed: too short, too long, a count or
 * enum out of range, text that is not there.
 */
#ifndef OL_WIRE_MESSAGE_H
#define OL_WIRE_MESSAGE_H

#include "base/buf.h"
#include "engine/engine.h"
#include "wire/ring.h"

#define OL_WIRE_VERSION 3u

/* Uploads at most: the host passes the limit of adapters by option, prompts are
 * bounded here. */
#define OL_MAX_PROMPT_BYTES ((size_t)16 << 20)

typedef enum ol_frame_type {
    OL_FRAME_DATA = 1,
    OL_FRAME_REQUEST,
    OL_FRAME_ADAPTER,
    OL_FRAME_ADAPTER_CHECK,
    OL_FRAME_TOKENIZE,
    OL_FRAME_DETOKENIZE,
    OL_FRAME_CANCEL,
    OL_FRAME_SESSION_END,
    OL_FRAME_STATUS,
    OL_FRAME_SHUTDOWN,
    OL_FRAME_EVENT,
    OL_FRAME_ADAPTER_FACTS,
    OL_FRAME_END,
    OL_FRAME_FAILED,
    OL_FRAME_PROGRESS,
    OL_FRAME_INFO,
    OL_FRAME_BROKEN,
    OL_FRAME_LOG,
    OL_FRAME_LOST,
    OL_FRAME_STATS,
    OL_FRAME_RECEIPT,
} ol_frame_type;

#define OL_FRAME_TYPE_LAST OL_FRAME_RECEIPT

/* REQUEST. Prompt and completion as text; their bytes are not encoded here but
 * uploaded before (prompt.len, completion.len say how many). Token forms are for
 * the engine's own programs and do not travel. */
void ol_wire_put_request(ol_buf *buf, const ol_request *request);
/* Arrays come out of `arena`; prompt and completion point into `upload`, whose
 * length must be exactly theirs. The tag is the frame's. */
struct ol_arena;
/* The meter alone, which comes first. */
bool ol_wire_get_meter(ol_reader *r, ol_text *meter);
bool ol_wire_get_request(ol_reader *r, struct ol_arena *arena, const uint8_t *upload,
                         size_t upload_len, ol_request *request);

/* ADAPTER and ADAPTER_CHECK. digest: which one this answers (zero for CHECK). */
typedef struct ol_wire_adapter {
    ol_digest digest;
    uint64_t weights_len;
    uint64_t config_len;
} ol_wire_adapter;

void ol_wire_put_adapter(ol_buf *buf, const ol_wire_adapter *adapter);
bool ol_wire_get_adapter(ol_reader *r, ol_wire_adapter *adapter);

void ol_wire_put_facts(ol_buf *buf, const ol_adapter_facts *facts);
bool ol_wire_get_facts(ol_reader *r, ol_adapter_facts *facts);

/* TOKENIZE, DETOKENIZE */
typedef struct ol_wire_text_op {
    bool add_bos;       /* TOKENIZE */
    bool parse_special; /* TOKENIZE */
    bool skip_special;  /* DETOKENIZE */
} ol_wire_text_op;

void ol_wire_put_text_op(ol_buf *buf, const ol_wire_text_op *op);
bool ol_wire_get_text_op(ol_reader *r, ol_wire_text_op *op);

/* EVENT. The tag is the frame's. Decoded: text points into the reader's bytes;
 * alternatives and shares into `scratch`. */
typedef struct ol_wire_event_scratch {
    ol_token_logprob alternatives[OL_MAX_LOGPROBS];
    double shares[OL_MAX_REQUEST_ADAPTERS];
} ol_wire_event_scratch;

void ol_wire_put_event(ol_buf *buf, const ol_event *event);
bool ol_wire_get_event(ol_reader *r, ol_wire_event_scratch *scratch, ol_event *event);

/* RECEIPT: an event of kind OL_EVENT_USAGE. */
void ol_wire_put_usage(ol_buf *buf, const ol_event *event);
bool ol_wire_get_usage(ol_reader *r, ol_wire_event_scratch *scratch, ol_event *event);

void ol_wire_put_error(ol_buf *buf, const ol_error *error);
bool ol_wire_get_error(ol_reader *r, ol_error *error);

void ol_wire_put_info(ol_buf *buf, const ol_engine_info *info);
bool ol_wire_get_info(ol_reader *r, ol_engine_info *info);

#endif
