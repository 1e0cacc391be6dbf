/* clock.h: microseconds of a clock that only goes forward. Waiting and statistics depend on
 * it; results never do. */
#ifndef OL_ENGINE_CLOCK_H
#define OL_ENGINE_CLOCK_H

#include <stdint.h>

uint64_t ol_now_us(void);

#endif
