// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The state of one row's online softmax in base 2: step over more keys, finish, and merge two states. Compiled into the
// CUDA kernels and, as it is, into a test module for the CPU.
#pragma once

#include <cmath>

#include "row_factors.h"

namespace nag {

// Logits are in units of log 2; a row that has seen no key has maximum -inf and sum 0.
struct SoftmaxState {
  float maximum;
  float sum;  // of exp2(logit - maximum)
};

namespace {

NAG_SHARED float exp2_of(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));  // -inf gives 0
  return y;
#else
  return std::exp2(x);
#endif
}

NAG_SHARED float no_key() { return -__builtin_huge_valf(); }

NAG_SHARED SoftmaxState empty_state() { return {no_key(), 0.0f}; }

// What to take from a logit before exp2: a row without keys must not form inf - inf.
NAG_SHARED float softmax_base(float maximum) { return maximum == no_key() ? 0.0f : maximum; }

// Raises the maximum to that of the new keys; returns what the sum and the accumulator so far are multiplied by. A NaN
// logit stays NaN in the sum.
NAG_SHARED float softmax_raise(SoftmaxState* state, float seen_maximum) {
  const float higher = state->maximum < seen_maximum ? seen_maximum : state->maximum;
  const float fade = exp2_of(state->maximum - softmax_base(higher));
  state->maximum = higher;
  state->sum *= fade;
  return fade;
}

// What an accumulator is multiplied by to be the attention output; 0 for a row without keys.
NAG_SHARED float softmax_weight(const SoftmaxState& state) { return state.sum == 0.0f ? 0.0f : 1.0f / state.sum; }

// What two accumulators over different keys are multiplied by so that their sum is the attention to all of the keys.
NAG_SHARED void softmax_merge(const SoftmaxState& first, const SoftmaxState& second, float* weight_first,
                              float* weight_second) {
  const float base = softmax_base(first.maximum < second.maximum ? second.maximum : first.maximum);
  const float fade_first = exp2_of(first.maximum - base);
  const float fade_second = exp2_of(second.maximum - base);
  const float sum = first.sum * fade_first + second.sum * fade_second;
  const float whole = sum == 0.0f ? 0.0f : 1.0f / sum;
  *weight_first = fade_first * whole;
  *weight_second = fade_second * whole;
}

}  // namespace
}  // namespace nag
