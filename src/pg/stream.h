/*
 * stream.h: lora_stream: one request whose rows arrive as tokens do.
 *
 * In the select list it is a set-returning function like any other. In FROM PostgreSQL
 * would collect all of a function's rows before the first is seen: there a CustomScan
 * (stream_node.c), which the planner hook puts instead of the function's scan
 * (stream_plan.c), returns them as they come.
 */
#ifndef LORA_STREAM_H
#define LORA_STREAM_H

#include "lora_pg.h"

#include "nodes/extensible.h"
#include "nodes/plannodes.h"

#define LORA_STREAM_COLUMNS 4

typedef struct LoraStream LoraStream;

/* Starts the request, in the current memory context, in which the arguments must live as
 * long as the stream. Raises its error, unless on_error said otherwise. */
extern LoraStream *lora_stream_open(FunctionCallInfo fcinfo);
/* The next row, waiting for it; its text is made in the current memory context. False at
 * the end, when the answer is attributed. */
extern bool lora_stream_next(LoraStream *stream, Datum *values, bool *nulls);
/* Cancels what is left. */
extern void lora_stream_close(LoraStream *stream);

extern const CustomScanMethods lora_stream_methods;

/* The scan of lora_stream that can return its rows as they come; else the plan it was. */
extern Plan *lora_put_stream(Plan *plan, PlannedStmt *statement);

#endif
