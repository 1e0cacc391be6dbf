/* noise.h: numbers that look random, and are the same ones in every run of a program. */
#ifndef TEST_NOISE_H
#define TEST_NOISE_H

int pick(int n); /* [0, n) */

#endif
