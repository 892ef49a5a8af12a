// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The rules as row factors: out = a Z+ - b Z-, one (a, b) per token. The one place where NAG and NASA differ;
// VSF (arXiv 2508.10931) takes the factors of NASA, and differs in what the attention gives it as Z+ and Z-.
#pragma once

#include "params.h"
#include "row_factors.h"
#include "vector.h"

namespace nag {
namespace NAG_ISA {
namespace {

// a x - b y
template <class V>
NAG_INLINE V extrapolate(V x, V y, V a, V b) {
  return fma(a, x, -(b * y));
}

// NAG: row_factors.h, which CUDA shares. NASA (arXiv 2412.02687) and VSF: a = 1, b = scale.
template <class M>
NAG_INLINE void row_factors(Rule rule, const Settings& settings, typename M::V norm_positive, typename M::V norm_guided,
                            typename M::V* a, typename M::V* b) {
  using V = typename M::V;
  using Acc = typename M::Acc;
  const V scale = splat(static_cast<Acc>(settings.scale));
  const V one = splat(Acc(1));
  if (rule != Rule::kNag) {
    *a = one;
    *b = scale;
    return;
  }
  nag_factors(norm_positive, norm_guided, scale, splat(static_cast<Acc>(settings.tau)),
              splat(static_cast<Acc>(settings.alpha)), one, a, b);
}

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
