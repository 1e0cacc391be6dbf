/*
 * access.h: who may do what with an adapter, and how much: sql/80-access.sql.
 *
 * The role that counts is the current user: inside a SECURITY DEFINER function its owner,
 * in a view whoever reads the view, as with privileges on tables.
 */
#ifndef LORA_ACCESS_H
#define LORA_ACCESS_H

#include "lora_pg.h"

#include "adapters.h"
#include "quota.h"

/* Whether `caller` may use the adapter with its weight, by a grant. Fills ref's quota. SPI is
 * connected, with the tables' owner's rights. */
extern bool lora_may_use(LoraAdapterRef *ref, Oid caller, ol_error *error);

/* Claims what a request may take at most from the quotas of the current user and of the
 * grants that it uses. */
extern bool lora_claim_quotas(const LoraAdapterRef *refs, int n, int64 tokens,
                              LoraQuotaClaim *claim, ol_error *error);

#endif
