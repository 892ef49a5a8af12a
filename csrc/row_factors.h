// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic that CPU and CUDA share: the rules as row factors. Scalars here; the CPU kernels also pass vectors
// (V).
#pragma once

#if defined(__CUDACC__)
#  define NAG_SHARED __host__ __device__ __forceinline__
#else
#  define NAG_SHARED inline __attribute__((always_inline))
#endif

namespace nag {
namespace {

// NAG (arXiv 2505.21179): f = min(1, tau |Z+|_1 / |G|_1), 1 where |G|_1 = 0 and where tau is infinite;
//   a = alpha f scale + 1 - alpha, b = alpha f (scale - 1), for out = a Z+ - b Z-.
template <class V>
NAG_SHARED void nag_factors(const V& norm_positive, const V& norm_guided, const V& scale, const V& tau, const V& alpha,
                            const V& one, V* a, V* b) {
  // The comparison is false for NaN: 0 / 0 (|G| = 0) and 0 * inf (no clip) leave the row as it is.
  const V bound = norm_positive / norm_guided * tau;
  const V f = bound < one ? bound : one;
  // This form of a gives exactly 1 for scale = 1, f = 1.
  *a = one + alpha * (f * scale - one);
  *b = alpha * f * (scale - one);
}

}  // namespace
}  // namespace nag
