// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The derivative of the rules for one panel of tokens, over all heads: from Z+, Z- and dL/dout to dL/dZ+ and dL/dZ-,
// and to dL/d of the settings. `formula` of nag_kernels/gradient.py has the equations; the names are those of it.
#pragma once

#include "attention_pack.h"
#include "guidance_rule.h"

namespace nag {
namespace NAG_ISA {
namespace {

template <class M>
struct RulePanel {
  using V = typename M::V;
  using Acc = typename M::Acc;
  static constexpr int kLanes = M::kLanes;
  static constexpr int kWidth = kVectors * kLanes;

  Rule rule;
  int64_t heads, head_size;
  const Acc* gradient;  // [heads][D][kWidth], dL/dout
  Acc* positive;        // [D][kWidth] of the first head: Z+, then dL/dZ+
  Acc* negative;        // Z-, then dL/dZ-
  int64_t head_stride;  // from one head to the next, of both
  Acc* delta;           // [2][kWidth] of the first head: sum(dZ Z) of each branch
  int64_t delta_stride;
  Acc* sums;  // [3]: dL/d of scale, tau and alpha, summed over the panel

  // sign(x) times v; 0 where x is.
  static NAG_INLINE V signed_by(V x, V v) {
    const V zero = {};
    return x > zero ? v : (x < zero ? -v : zero);
  }

  // Calls f(positive, negative, gradient, sums) for every vector of lanes j; sums are added up in runs, then by head.
  template <int kSums, class F>
  NAG_INLINE void walk(int j, int64_t head, V (&total)[kSums], const F& f) const {
    Acc* plus = positive + head * head_stride + j * kLanes;
    Acc* minus = negative + head * head_stride + j * kLanes;
    const Acc* push = gradient + head * head_size * kWidth + j * kLanes;
    for (int64_t c0 = 0; c0 < head_size; c0 += kSumRun) {
      V some[kSums] = {};
      for (int64_t c = c0; c < min64(c0 + kSumRun, head_size); ++c) {
        f(plus + c * kWidth, minus + c * kWidth, load(push + c * kWidth), some);
      }
      for (int i = 0; i < kSums; ++i) {
        total[i] += some[i];
      }
    }
  }

  void run(const Settings& settings) const {
    V totals[3] = {};
    for (int j = 0; j < kVectors; ++j) {
      V d_settings[3] = {};
      if (rule == Rule::kNag) {
        nag(settings, j, d_settings);
      } else {
        linear(settings, j, d_settings);
      }
      for (int i = 0; i < 3; ++i) {
        totals[i] += d_settings[i];
      }
    }
    for (int i = 0; i < 3; ++i) {
      sums[i] = lane_sum<M>(totals[i]);
    }
  }

  // NASA: out = Z+ - scale Z-. VSF: out = Z, whose negative part is without its factor -scale.
  void linear(const Settings& settings, int j, V (&d_settings)[3]) const {
    const V scale = splat(static_cast<Acc>(settings.scale));
    const bool vsf = rule == Rule::kVsf;
    for (int64_t head = 0; head < heads; ++head) {
      V total[3] = {};
      walk(j, head, total, [&](Acc* plus, Acc* minus, V push, V(&some)[3]) {
        const V zp = load(plus);
        const V zn = load(minus);
        const V d_negative = vsf ? push : -(push * scale);
        some[0] = fma(push, zp, some[0]);
        some[1] = fma(d_negative, zn, some[1]);
        some[2] = fma(push, zn, some[2]);
        store(plus, push);
        store(minus, d_negative);
      });
      Acc* at = delta + head * delta_stride + j * kLanes;
      store(at, total[0]);
      store(at + kWidth, vsf ? total[0] : total[1]);
      d_settings[0] = d_settings[0] - total[2];
    }
  }

  void nag(const Settings& settings, int j, V (&d_settings)[3]) const {
    const V zero = {};
    const V one = splat(Acc(1));
    const V scale = splat(static_cast<Acc>(settings.scale));
    const V alpha = splat(static_cast<Acc>(settings.alpha));
    const bool clips = !std::isinf(settings.tau);
    const V tau = splat(clips ? static_cast<Acc>(settings.tau) : Acc(1));
    V length = {}, norm = {}, whole = {}, along = {};
    for (int64_t head = 0; head < heads; ++head) {
      V total[4] = {};
      walk(j, head, total, [&](Acc* plus, Acc* minus, V push, V(&some)[4]) {
        const V zp = load(plus);
        const V zn = load(minus);
        const V guided = fma(zp - zn, scale, zn);
        some[0] += abs(guided);
        some[1] += abs(zp);
        some[2] = fma(push, zp, some[2]);
        some[3] = fma(push, guided, some[3]);
      });
      length += total[0];
      norm += total[1];
      whole += total[2];
      along += total[3];
    }
    const auto clipped = clips ? length > tau * norm : length < length;
    const V divisor = clipped ? length : one;
    const V factor = clipped ? tau * norm / divisor : one;
    const V pull = (clipped ? alpha * along : zero) / divisor;  // e / |G|_1
    const V of_push = alpha * factor;
    const V of_sign = pull * factor;
    const V of_positive = pull * tau;
    for (int64_t head = 0; head < heads; ++head) {
      V total[3] = {};
      walk(j, head, total, [&](Acc* plus, Acc* minus, V push, V(&some)[3]) {
        const V zp = load(plus);
        const V zn = load(minus);
        const V guided = fma(zp - zn, scale, zn);
        const V d_guided = push * of_push - signed_by(guided, of_sign);
        const V d_positive = fma(d_guided, scale, push * (one - alpha) + signed_by(zp, of_positive));
        const V d_negative = d_guided * (one - scale);
        some[0] = fma(d_positive, zp, some[0]);
        some[1] = fma(d_negative, zn, some[1]);
        some[2] = fma(d_guided, zp - zn, some[2]);
        store(plus, d_positive);
        store(minus, d_negative);
      });
      Acc* at = delta + head * delta_stride + j * kLanes;
      store(at, total[0]);
      store(at + kWidth, total[1]);
      d_settings[0] += total[2];
    }
    d_settings[1] = pull * norm;
    d_settings[2] = factor * along - whole;
  }
};

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
