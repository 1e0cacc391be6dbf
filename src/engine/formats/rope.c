/*
 * rope.c: rotary frequencies, as transformers' modeling_rope_utils computes them: in
 * float, so that angles agree to the last bit or nearly so at long positions.
 */
#include "engine/formats/model_config.h"

#include <math.h>

#define TWO_PI 6.283185307179586

/* Llama 3.1: low frequencies are divided by the factor, high ones kept, those between
 * blended. */
static float scale_llama3(const ol_rope *rope, float freq)
{
    float wavelength = (float)TWO_PI / freq;
    float original = (float)rope->original_max_position, factor = (float)rope->factor;
    float low = (float)rope->low_freq, high = (float)rope->high_freq, blend;

    if (wavelength > original / low)
        return freq / factor;
    if (wavelength < original / high)
        return freq;
    blend = (original / wavelength - low) / (high - low);
    return (1 - blend) * freq / factor + blend * freq;
}

/* YaRN: the dimension that turns `rotations` times within the original context. */
static double correction_dim(const ol_rope *rope, double rotations)
{
    return rope->dims * log(rope->original_max_position / (rotations * TWO_PI)) /
           (2 * log(rope->theta));
}

static float scale_yarn(const ol_rope *rope, int i, float freq)
{
    double low = correction_dim(rope, rope->beta_fast);
    double high = correction_dim(rope, rope->beta_slow);
    float ramp;

    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = low < 0 ? 0 : low;
    high = high > rope->dims - 1 ? rope->dims - 1 : high;
    if (low == high)
        high += 0.001;
    ramp = ((float)i - (float)low) / (float)(high - low);
    ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
    return freq / (float)rope->factor * ramp + freq * (1 - ramp);
}

float ol_rope_frequencies(const ol_model_config *config, float *inv_freq)
{
    const ol_rope *rope = &config->rope;

    for (int i = 0; i < rope->dims / 2; i++) {
        float freq = 1.0f / powf((float)rope->theta, (float)(2 * i) / (float)rope->dims);

        if (rope->scaling == OL_ROPE_LINEAR)
            freq /= (float)rope->factor;
        else if (rope->scaling == OL_ROPE_LLAMA3)
            freq = scale_llama3(rope, freq);
        else if (rope->scaling == OL_ROPE_YARN)
            freq = scale_yarn(rope, i, freq);
        if (rope->has_divisors)
            freq /= rope->divisors[i];
        inv_freq[i] = freq;
    }
    return rope->scaling == OL_ROPE_YARN ? (float)rope->attention_factor : 1.0f;
}
