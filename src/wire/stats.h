/*
 * stats.h: rows of statistics as they travel: ANSWER of a STATS frame, one after the other in
 * the DATA frames. The payload of STATS is one byte: which.
 */
#ifndef OL_WIRE_STATS_H
#define OL_WIRE_STATS_H

#include "base/buf.h"
#include "engine/stats.h"

typedef enum ol_wire_stats {
    OL_STATS_REQUESTS,
    OL_STATS_ADAPTERS,
    OL_STATS_RESET, /* no rows: adapters' counts begin again */
} ol_wire_stats;

void ol_wire_put_request_stat(ol_buf *buf, const ol_request_stat *stat);
void ol_wire_put_adapter_stat(ol_buf *buf, const ol_adapter_stat *stat);
/* The next row; false at the end, or when it is malformed (then reader->bad). */
bool ol_wire_get_request_stat(ol_reader *r, ol_request_stat *stat);
bool ol_wire_get_adapter_stat(ol_reader *r, ol_adapter_stat *stat);

#endif
