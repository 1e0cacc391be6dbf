/*
 * credits.h: who is credited for an answer: rows of openlora.attributions.
 *
 * Parts per million times parts per million times parts per million is at most 10^18, which
 * an int64 holds: credits are exact products in units of 10^-12 parts per million, and only
 * the measured shares, which are floating point, are ever rounded (to parts per million, by
 * largest remainder).
 */
#ifndef LORA_CREDITS_H
#define LORA_CREDITS_H

#include "lora_pg.h"

#include "adapters.h"

typedef struct LoraCredit LoraCredit;

typedef struct LoraCredits {
    LoraCredit *list;
    int n, room;
} LoraCredits;

/* None yet; in the current memory context. */
extern void lora_credits_begin(LoraCredits *credits);
/* Whoever stands for a role, with the whole of a kind. */
extern void lora_credit_role(LoraCredits *credits, const char *kind, Oid role);
/* Whoever is behind an adapter, scaled to its part of the request (parts per million). Provenance
 * is read under the active snapshot. Raises when its shares exceed the whole. */
extern void lora_credit_adapter(LoraCredits *credits, const LoraAdapterRef *ref, int64 part);
/* Writes them; `tokens` are what they have shares of. */
extern void lora_write_credits(int64 inference, const LoraCredits *credits, int64 tokens);

#endif
