/*
 * attribution.h: what is written beside an answer, in the caller's transaction.
 */
#ifndef LORA_ATTRIBUTION_H
#define LORA_ATTRIBUTION_H

#include "lora_pg.h"

#include "request.h"

/* The whole of a share: parts per million. */
#define LORA_WHOLE INT64CONST(1000000)

/* Raises where an answer could not be attributed: before anything is computed. */
extern void lora_attribution_prevent(void);

/* Writes inferences, inference_adapters and attributions with the rights of the tables'
 * owner, so that nobody can forge them. Returns the inference's id, 0 when attribution is off.
 * Provenance is read under the active snapshot, the one that spec->adapters were resolved with. */
extern int64 lora_attribute(const LoraSpec *spec, const LoraResult *result);

/* Splits `total` by weights (not negative, sum above 0) exactly: floors first, then one
 * unit each by largest remainder, the first of equals first. Weights that sum to 0 split
 * equally. */
extern void lora_split(int64 total, int n, const int64 *weights, int64 *parts);
/* LORA_WHOLE by measured shares: what is no number or negative makes all of them equal. */
extern void lora_split_shares(int n, const double *shares, int64 *parts);

#endif
