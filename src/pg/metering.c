/* metering.c: see metering.h. */
#include "metering.h"

#include "ledger.h"
#include "receipt.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

typedef struct Address {
    uint32 session, epoch;
    uint64 tag;
} Address;

typedef struct Flight {
    Address address;
    LoraReceipt receipt; /* as if its engine were lost now */
} Flight;

static HTAB *flights;

static HTAB *all_flights(void)
{
    HASHCTL how = {.keysize = sizeof(Address), .entrysize = sizeof(Flight)};

    if (!flights) {
        how.hcxt = TopMemoryContext;
        flights =
            hash_create("openlora metering", 256, &how, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
    }
    return flights;
}

static Flight *find(const ol_frame *frame)
{
    Address address = {frame->session, frame->epoch, frame->tag};

    return hash_search(all_flights(), &address, HASH_FIND, NULL);
}

/* Where nothing was computed there is nothing to be metered, unless somebody was told that
 * there would be. */
static void put(const LoraReceipt *receipt)
{
    if (receipt->input_tokens > 0 || receipt->meter.announced)
        lora_ledger_put(receipt);
}

static void end(Flight *flight)
{
    put(&flight->receipt);
    (void)hash_search(all_flights(), &flight->address, HASH_REMOVE, NULL);
}

/* False: it is not metered. */
static bool get_meter(const ol_frame *frame, const void *payload, LoraMeter *meter)
{
    ol_reader r = ol_reader_over(payload, frame->length);
    ol_text bytes;

    if (frame->type != OL_FRAME_REQUEST || !ol_wire_get_meter(&r, &bytes) ||
        bytes.len != sizeof(*meter))
        return false;
    memcpy(meter, bytes.data, sizeof(*meter));
    return lora_meter_is_sound(meter);
}

void lora_metering_begin(const ol_frame *frame, const void *payload)
{
    Address address = {frame->session, frame->epoch, frame->tag};
    LoraMeter meter;
    Flight *flight;
    bool found;

    if (!get_meter(frame, payload, &meter))
        return;
    flight = hash_search(all_flights(), &address, HASH_ENTER, &found);
    if (found) /* the engine fails both */
        put(&flight->receipt);
    lora_receipt_begin(&meter, LORA_OUTCOME_LOST, &flight->receipt);
}

void lora_metering_refuse(const ol_frame *frame, const void *payload)
{
    LoraReceipt receipt;
    LoraMeter meter;

    if (!get_meter(frame, payload, &meter))
        return;
    lora_receipt_begin(&meter, LORA_OUTCOME_LOST, &receipt);
    put(&receipt);
}

bool lora_metering_report(const ol_frame *frame, const void *payload)
{
    ol_reader r = ol_reader_over(payload, frame->length);
    Flight *flight = find(frame);
    LoraReceipt receipt;

    if (!flight)
        return false;
    receipt = flight->receipt;
    if (!lora_receipt_report(&receipt, &r))
        return false;
    flight->receipt = receipt;
    if (receipt.outcome != LORA_OUTCOME_LOST)
        end(flight);
    return true;
}

void lora_metering_event(const ol_frame *frame, const uint8 *payload)
{
    Flight *flight;

    if (frame->type != OL_FRAME_EVENT || frame->length == 0 ||
        (payload[0] != OL_EVENT_FAILED && payload[0] != OL_EVENT_DONE))
        return;
    flight = find(frame);
    if (!flight) /* as it should be after an end that was reported */
        return;
    flight->receipt.outcome = payload[0] == OL_EVENT_DONE ? OL_OUTCOME_DONE : OL_OUTCOME_FAILED;
    end(flight);
}

void lora_metering_lost(void)
{
    HASH_SEQ_STATUS all;
    Flight *flight;

    hash_seq_init(&all, all_flights());
    while ((flight = hash_seq_search(&all)) != NULL)
        end(flight);
}
