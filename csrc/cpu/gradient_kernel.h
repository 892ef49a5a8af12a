// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// What of a gradient passes over memory without products, in float32 on one SIMD path: the exponentials of a row of
// logits, and the derivative of the formula of one token. nag_kernels/gradient.py has the formulas.
#pragma once

#include "params.h"
#include "vector.h"

namespace nag {
namespace NAG_ISA {
namespace {

struct Gradient {
  using M = F32;
  using V = VecF;
  static constexpr int kLanes = kFloats;
  // Vectors per partial sum, as in guidance_kernel.h.
  static constexpr int64_t kRun = 16 * kLanes;

  static NAG_INLINE V sign(V x) { return (x > 0.0f ? splat(1.0f) : V{}) - (x < 0.0f ? splat(1.0f) : V{}); }

  // e^x for x <= 0, 0 below -87; NaN stays NaN. n = round(x log2(e)); the rest of x comes from one rounding where the
  // path has fused products.
  static NAG_INLINE V exp_nonpositive(V x) {
    const V log2_of_e = splat(0x1.715476p+0f);
    const V shift = splat(12582912.0f);  // 1.5 * 2^23: the sum is rounded to an integer
    const V bounded = max(splat(-87.0f), x);
    const V n = (fma(bounded, log2_of_e, shift)) - shift;
    const V rest = fma(bounded, splat(0x1.4ae0cp-26f), fma(bounded, log2_of_e, -n));  // log2(e) in two numbers
    const VecI exponent = __builtin_convertvector(n, VecI) + 127;
    const V found = exp2_fraction<false>(rest) * (V)(exponent << 23);
    return x < -87.0f ? V{} : (x != x ? x : found);
  }

  // Logits become exp(logit - largest). find: *largest is looked for first, and *total is their sum.
  static void exponentials_of_row(float* logits, int64_t length, bool find, float* largest, float* total) {
    if (find) {
      float top = -std::numeric_limits<float>::max();  // also where all are hidden, so that no -inf is subtracted
      V tops = splat(top);
      int64_t c = 0;
      for (; c + kLanes <= length; c += kLanes) {
        tops = max(load(logits + c), tops);  // a NaN is not taken, and comes back in the sum
      }
      for (int i = 0; i < kLanes; ++i) {
        top = tops[i] > top ? tops[i] : top;
      }
      for (; c < length; ++c) {
        top = logits[c] > top ? logits[c] : top;
      }
      *largest = top;
    }
    const V base = splat(*largest);
    V sum = {};
    for (int64_t c0 = 0; c0 < length; c0 += kRun) {
      const int64_t end = c0 + kRun < length ? c0 + kRun : length;
      V some = {};
      int64_t c = c0;
      for (; c + kLanes <= end; c += kLanes) {
        const V weight = exp_nonpositive(load(logits + c) - base);
        store(logits + c, weight);
        some += weight;
      }
      if (c < end) {
        const V weight = exp_nonpositive(load_partial<M>(logits + c, end - c) - base);
        store_partial<M>(logits + c, weight, end - c);
        for (int i = 0; i < end - c; ++i) {
          some[i] += weight[i];
        }
      }
      sum += some;
    }
    if (find) {
      *total = lane_sum<M>(sum);
    }
  }

  // The derivative of one token's formula. Rows of D numbers, one for each head.
  static void formula_of_token(const FormulaToken& t) {
    const float scale = static_cast<float>(t.settings.scale);
    const float tau = static_cast<float>(t.settings.tau);
    const float alpha = static_cast<float>(t.settings.alpha);
    if (t.rule == Rule::kNag) {
      nag(t, scale, tau, alpha);
    } else {
      nasa(t, scale);
    }
  }

 private:
  struct Row {
    const float *gradient, *positive, *negative;
    float *d_positive, *d_negative;
  };
  static NAG_INLINE Row row_of(const FormulaToken& t, int64_t head) {
    return {t.gradient + head * t.gradient_stride, t.positive + head * t.positive_stride,
            t.negative + head * t.negative_stride, t.d_positive + head * t.d_stride, t.d_negative + head * t.d_stride};
  }

  static void nag(const FormulaToken& t, float scale, float tau, float alpha) {
    V whole = {}, length = {}, norm = {}, along = {};
    for (int64_t head = 0; head < t.heads; ++head) {
      const Row row = row_of(t, head);
      V some_whole = {}, some_length = {}, some_norm = {}, some_along = {};
      for (int64_t c = 0; c < t.size; c += kLanes) {
        const V g = load_at<M>(row.gradient, c, t.size);
        const V zp = load_at<M>(row.positive, c, t.size);
        const V zn = load_at<M>(row.negative, c, t.size);
        const V extrapolated = fma(splat(scale), zp - zn, zn);
        some_whole = fma(g, zp, some_whole);
        some_norm += abs(zp);
        some_length += abs(extrapolated);
        some_along = fma(g, extrapolated, some_along);
      }
      whole += some_whole;
      norm += some_norm;
      length += some_length;
      along += some_along;
    }
    const float sum_norm = lane_sum<M>(norm), sum_length = lane_sum<M>(length), sum_along = lane_sum<M>(along);
    const bool clipped = tau <= std::numeric_limits<float>::max() && sum_length > tau * sum_norm;
    const float factor = clipped ? tau * sum_norm / sum_length : 1.0f;
    const float pull = clipped ? alpha * sum_along / sum_length : 0.0f;
    const float bound = clipped ? pull * tau : 0.0f;
    const V of_gradient = splat(alpha * factor), of_sign = splat(-pull * factor), kept = splat(1.0f - alpha);
    V d_scale = {};
    for (int64_t head = 0; head < t.heads; ++head) {
      const Row row = row_of(t, head);
      V some_scale = {}, delta_positive = {}, delta_negative = {};
      for (int64_t c = 0; c < t.size; c += kLanes) {
        const V g = load_at<M>(row.gradient, c, t.size);
        const V zp = load_at<M>(row.positive, c, t.size);
        const V zn = load_at<M>(row.negative, c, t.size);
        const V extrapolated = fma(splat(scale), zp - zn, zn);
        const V d_extrapolated = fma(of_sign, sign(extrapolated), g * of_gradient);
        const V d_positive = fma(splat(scale), d_extrapolated, fma(splat(bound), sign(zp), g * kept));
        const V d_negative = d_extrapolated * splat(1.0f - scale);
        some_scale = fma(d_extrapolated, zp - zn, some_scale);
        delta_positive = fma(zp, d_positive, delta_positive);
        delta_negative = fma(zn, d_negative, delta_negative);
        store_at<M>(row.d_positive, d_positive, c, t.size);
        store_at<M>(row.d_negative, d_negative, c, t.size);
      }
      d_scale += some_scale;
      t.deltas[head * t.delta_stride] = lane_sum<M>(delta_positive);
      t.deltas[(t.heads + head) * t.delta_stride] = lane_sum<M>(delta_negative);
    }
    t.d_settings[0] = lane_sum<M>(d_scale);
    t.d_settings[1] = pull * sum_norm;
    t.d_settings[2] = factor * sum_along - lane_sum<M>(whole);
  }

  static void nasa(const FormulaToken& t, float scale) {
    V d_scale = {};
    for (int64_t head = 0; head < t.heads; ++head) {
      const Row row = row_of(t, head);
      V delta_positive = {}, delta_negative = {};
      for (int64_t c = 0; c < t.size; c += kLanes) {
        const V g = load_at<M>(row.gradient, c, t.size);
        delta_positive = fma(g, load_at<M>(row.positive, c, t.size), delta_positive);
        delta_negative = fma(g, load_at<M>(row.negative, c, t.size), delta_negative);
        store_at<M>(row.d_positive, g, c, t.size);
        store_at<M>(row.d_negative, g * splat(-scale), c, t.size);
      }
      d_scale -= delta_negative;
      t.deltas[head * t.delta_stride] = lane_sum<M>(delta_positive);
      t.deltas[(t.heads + head) * t.delta_stride] = -scale * lane_sum<M>(delta_negative);
    }
    t.d_settings[0] = lane_sum<M>(d_scale);
    t.d_settings[1] = t.d_settings[2] = 0.0f;
  }

 public:
  static constexpr GradientKernel kernel() { return {exponentials_of_row, formula_of_token}; }
};

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
