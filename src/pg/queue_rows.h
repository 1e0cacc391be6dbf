/*
 * queue_rows.h: the queue's worker and its table. SPI is connected; all is done with the
 * rights of the tables' owner.
 */
#ifndef LORA_QUEUE_ROWS_H
#define LORA_QUEUE_ROWS_H

#include "lora_pg.h"

#include "request.h"

typedef enum LoraQueueEnd {
    LORA_END_NONE,
    LORA_END_DONE,
    LORA_END_FAILED,
    LORA_END_CANCELLED,
    LORA_END_AGAIN,     /* another attempt, if any is left */
    LORA_END_UNCOUNTED, /* it was not begun: as if it had not been tried */
} LoraQueueEnd;

typedef struct LoraQueueItem {
    struct LoraQueueItem *next;
    MemoryContext context; /* of all that it has; it is in it */
    int64 id;
    Oid role;
    int attempts, priority;
    float8 tenant_weight;
    bool last_attempt;
    LoraSpec spec;
    LoraRequest *request;
    LoraQueueEnd end;
    int sqlstate;
    char *error;  /* in the database's encoding */
    bool held;    /* somebody holds a lock on the row: its end is written later */
    bool gone;    /* somebody has deleted it */
    bool refused; /* it was not begun for want of room */
} LoraQueueItem;

extern void lora_queue_set_end(LoraQueueItem *item, LoraQueueEnd end, int sqlstate,
                               const char *message);

/* Rows that an earlier worker has left running wait again, or are given up. */
extern void lora_queue_recover(void);
/* Claims at most `room` rows, counting the attempt. While any row has only its last attempt
 * left, nothing else is claimed, and it alone when `alone`. */
extern LoraQueueItem *lora_queue_claim(int room, bool alone);
extern bool lora_queue_any_waits(void);
/* The arguments of lora_submit. False, and the item's end set, when it runs no more. */
extern bool lora_queue_read_arguments(LoraQueueItem *item, FunctionCallInfo fcinfo);
/* Whether the role may still ask. Else the item's end is set. */
extern bool lora_queue_check_role(LoraQueueItem *item);
/* Locks the row if nobody else has; sets held or gone if not. Takes note of lora_cancel. */
extern bool lora_queue_lock_row(LoraQueueItem *item);
extern void lora_queue_write_end(LoraQueueItem *item, int64 inference);
/* Of rows that run; palloc'ed in TopMemoryContext. */
extern int lora_queue_find_cancelled(int64 **ids);
extern void lora_queue_expire(void);
/* When there will be something to expire; 0: never. */
extern TimestampTz lora_queue_expires_next(void);
extern Oid lora_queue_relation(void);

#endif
