// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Guidance of one row [C] on one SIMD path: both norms in a first pass, the blend in a second over the cached row.
#pragma once

#include "guidance_rule.h"
#include "params.h"
#include "vector.h"

namespace nag {
namespace NAG_ISA {
namespace {

template <class T>
struct Guidance {
  using M = typename ComputeOf<T>::type;
  using V = typename M::V;
  using Acc = typename M::Acc;
  static constexpr int kLanes = M::kLanes;
  // Vectors per partial sum: the rounding error grows with the depth of the sum, not with C.
  static constexpr int64_t kRun = 16 * kLanes;

  static void run_row(const void* positive_row, const void* negative_row, void* out_row, int64_t channels, Rule rule,
                      const Settings& settings) {
    const T* positive = static_cast<const T*>(positive_row);
    const T* negative = static_cast<const T*>(negative_row);
    T* out = static_cast<T*>(out_row);
    V norm_positive = {};
    V norm_guided = {};
    if (rule == Rule::kNag) {
      const V scale = splat(static_cast<Acc>(settings.scale));
      const V phi = scale - splat(Acc(1));
      for (int64_t c0 = 0; c0 < channels; c0 += kRun) {
        const int64_t end = c0 + kRun < channels ? c0 + kRun : channels;
        V some_positive = {};
        V some_guided = {};
        for (int64_t c = c0; c < end; c += kLanes) {
          const V zp = load_at<M>(positive, c, channels);
          const V zn = load_at<M>(negative, c, channels);
          some_positive += abs(zp);
          some_guided += abs(extrapolate(zp, zn, scale, phi));
        }
        norm_positive += some_positive;
        norm_guided += some_guided;
      }
      norm_positive = splat(lane_sum<M>(norm_positive));
      norm_guided = splat(lane_sum<M>(norm_guided));
    }
    V a;
    V b;
    row_factors<M>(rule, settings, norm_positive, norm_guided, &a, &b);
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      store(out + c, extrapolate(load(positive + c), load(negative + c), a, b));
    }
    if (c < channels) {
      const V v = extrapolate(load_at<M>(positive, c, channels), load_at<M>(negative, c, channels), a, b);
      store_partial<M>(out + c, v, channels - c);
    }
  }

  static constexpr GuidanceKernel kernel(const char* path) { return {path, run_row}; }
};

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
