/*
 * choose.h: from a row of logits to a token, on the host: for devices that do not choose
 * themselves, and as what those that do are compared with. base/choice.h says what is done.
 */
#ifndef OL_ENGINE_CHOOSE_H
#define OL_ENGINE_CHOOSE_H

#include "base/choice.h"
#include "base/status.h"

typedef struct ol_chooser ol_chooser; /* working memory */

ol_code ol_chooser_create(int vocab, ol_chooser **chooser, ol_error *err);
void ol_chooser_free(ol_chooser *chooser); /* NULL is fine */

/* As `choose` of device.h does it. */
void ol_choose(ol_chooser *chooser, const ol_pick *how, const float *logits, ol_choice *choice);

/* Fails when the logits held what is no number, or left no token to choose. */
ol_code ol_choice_check(const ol_choice *choice, ol_error *err);

#endif
