// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// One step of the online softmax on the fragments of a warp, and the settings of a sample. 16 queries are one tile of
// fragments; in a lane's numbers g = lane / 4 and t = lane % 4.
#pragma once

#include "device.cuh"
#include "params.h"
#include "softmax_state.h"

namespace nag {
namespace device {

// Logits [16 queries, 8 * kTiles keys] become weights, as the first operand of the product with the values. The lane's
// sums are over its own columns; `states` are of rows g and g + 8. First the exponentials, in the place of the logits:
template <int kTiles>
NAG_DEVICE void softmax_raise_rows(float (&logits)[kTiles][4], SoftmaxState (&states)[2], float (&fades)[2]) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float top = no_key();
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      top = larger(top, larger(logits[n][2 * row], logits[n][2 * row + 1]));
    }
    top = larger(top, shuffle_xor(top, 1));
    top = larger(top, shuffle_xor(top, 2));
    fades[row] = softmax_raise(&states[row], top);
    const float base = softmax_base(states[row].maximum);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      logits[n][2 * row] = exp2_of(logits[n][2 * row] - base);
      logits[n][2 * row + 1] = exp2_of(logits[n][2 * row + 1] - base);
    }
  }
}
// Then their sums and 16 bits of each.
template <class T, int kTiles>
NAG_DEVICE void softmax_pack(const float (&exponentials)[kTiles][4], SoftmaxState (&states)[2],
                             uint32_t (&weights)[kTiles][2]) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const uint32_t pair = pack(T(), exponentials[n][2 * row], exponentials[n][2 * row + 1]);
      weights[n][row] = pair;
      states[row].sum += low(T(), pair) + high(T(), pair);  // as rounded: numerator and denominator agree
    }
  }
}
template <class T, int kTiles>
NAG_DEVICE void softmax_step(float (&logits)[kTiles][4], SoftmaxState (&states)[2], float (&fades)[2],
                             uint32_t (&weights)[kTiles][2]) {
  softmax_raise_rows<kTiles>(logits, states, fades);
  softmax_pack<T, kTiles>(logits, states, weights);
}

// An accumulator of rows g and g + 8 on the scale of their new maximum.
template <int kTiles>
NAG_DEVICE void fade(float (&z)[kTiles][4], const float (&fades)[2]) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    z[i][0] *= fades[0];
    z[i][1] *= fades[0];
    z[i][2] *= fades[1];
    z[i][3] *= fades[1];
  }
}

// The sum of a row over the four lanes that share it.
NAG_DEVICE float row_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// What Z+ and Z- as accumulated are multiplied by; for VSF both belong to one softmax.
NAG_DEVICE void branch_weights(RowRule rule, const SoftmaxState& positive, const SoftmaxState& negative,
                               float* weight_positive, float* weight_negative) {
  if (rule == RowRule::kVsf) {
    softmax_merge(positive, negative, weight_positive, weight_negative);
  } else {
    *weight_positive = softmax_weight(positive);
    *weight_negative = softmax_weight(negative);
  }
}

struct SampleSettings {
  float scale;
  float tau;
  float alpha;
};

NAG_DEVICE SampleSettings settings_of(const Settings& settings, int64_t sample) {
  if (settings.tensor[0] == nullptr) {
    return {settings.number[0], settings.number[1], settings.number[2]};
  }
  return {load_float(settings.tensor[0] + sample * settings.stride[0]),
          load_float(settings.tensor[1] + sample * settings.stride[1]),
          load_float(settings.tensor[2] + sample * settings.stride[2])};
}

// out = a Z+ - b Z-
NAG_DEVICE void row_factors(RowRule rule, const SampleSettings& settings, float norm_positive, float norm_guided,
                            float* a, float* b) {
  if (rule == RowRule::kNag) {
    nag_factors(norm_positive, norm_guided, settings.scale, settings.tau, settings.alpha, 1.0f, a, b);
  } else {
    *a = 1.0f;
    *b = settings.scale;
  }
}

NAG_DEVICE float magnitude(float x) { return x < 0.0f ? -x : x; }

}  // namespace device
}  // namespace nag
