// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "guidance_kernel.cuh"
#include "kernel_launch.h"

namespace nag {
namespace {

template <class In, class Out>
cudaError_t launch_types(const Target& target, const GuidanceParams& p, bool vectors) {
  const int64_t vector = vectors ? 8 : 1;
  const int64_t wanted = (p.channels + vector * kGuidanceHeld - 1) / (vector * kGuidanceHeld);
  const int threads = static_cast<int>(std::min<int64_t>((wanted + kWarp - 1) / kWarp * kWarp, kGuidanceMaxThreads));
  return launch_kernel(target, vectors ? guidance_kernel<In, Out, 8> : guidance_kernel<In, Out, 1>, p.rows, threads,
                       kGuidanceSharedBytes, p);
}

}  // namespace

cudaError_t launch_guidance(const Target& target, const GuidanceParams& p, Element in, Element out, bool vectors) {
  using device::BFloat16;
  using device::Float;
  using device::Half;
  if (in == Element::kBFloat16) {
    return launch_types<BFloat16, BFloat16>(target, p, vectors);
  }
  if (in == Element::kHalf) {
    return launch_types<Half, Half>(target, p, vectors);
  }
  if (out == Element::kBFloat16) {
    return launch_types<Float, BFloat16>(target, p, vectors);
  }
  if (out == Element::kHalf) {
    return launch_types<Float, Half>(target, p, vectors);
  }
  return launch_types<Float, Float>(target, p, vectors);
}

cudaError_t find_guidance() { return find_code(guidance_kernel<device::BFloat16, device::BFloat16, 8>); }

}  // namespace nag
