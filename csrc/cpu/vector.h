// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Vectors of NAG_VECTOR_BYTES for one SIMD path. Each kernels_<path>.cpp defines NAG_ISA (its namespace) and the
// NAG_HAS_* macros, switches the compiler's target on, and includes this once. Everything sits in an unnamed
// namespace: two paths never share a symbol, so the linker cannot pick wide code for a narrow machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#define NAG_INLINE inline __attribute__((always_inline))

// Whether a * b + c rounds once on this path.
#if defined(NAG_HAS_AVX512) || defined(NAG_HAS_AVX2) || defined(__aarch64__) || defined(NAG_HAS_BF16_PAIRS)
#  define NAG_FUSED true
#else
#  define NAG_FUSED false
#endif

namespace nag {
namespace NAG_ISA {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

typedef float VecF __attribute__((vector_size(NAG_VECTOR_BYTES)));
typedef double VecD __attribute__((vector_size(NAG_VECTOR_BYTES)));
typedef int32_t VecI __attribute__((vector_size(NAG_VECTOR_BYTES)));
typedef uint32_t VecU __attribute__((vector_size(NAG_VECTOR_BYTES)));
typedef int64_t VecL __attribute__((vector_size(NAG_VECTOR_BYTES)));
typedef uint16_t VecHalf __attribute__((vector_size(NAG_VECTOR_BYTES / 2)));
typedef float VecFUnaligned __attribute__((vector_size(NAG_VECTOR_BYTES), aligned(4), may_alias));
typedef double VecDUnaligned __attribute__((vector_size(NAG_VECTOR_BYTES), aligned(8), may_alias));
typedef uint16_t VecHalfUnaligned __attribute__((vector_size(NAG_VECTOR_BYTES / 2), aligned(2), may_alias));

constexpr int kFloats = NAG_VECTOR_BYTES / 4;
constexpr int kDoubles = NAG_VECTOR_BYTES / 8;

NAG_INLINE VecF load(const float* p) { return *reinterpret_cast<const VecFUnaligned*>(p); }
NAG_INLINE VecD load(const double* p) { return *reinterpret_cast<const VecDUnaligned*>(p); }
NAG_INLINE void store(float* p, VecF v) { *reinterpret_cast<VecFUnaligned*>(p) = v; }
NAG_INLINE void store(double* p, VecD v) { *reinterpret_cast<VecDUnaligned*>(p) = v; }

// x - 0 is x for every x, -0 and NaN included, so this is a plain broadcast.
NAG_INLINE VecF splat(float x) { return x - VecF{}; }
NAG_INLINE VecD splat(double x) { return x - VecD{}; }

#if defined(NAG_HAS_AVX512)
NAG_INLINE VecF fma(VecF a, VecF b, VecF c) { return (VecF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
NAG_INLINE VecD fma(VecD a, VecD b, VecD c) { return (VecD)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#elif defined(NAG_HAS_AVX2)
NAG_INLINE VecF fma(VecF a, VecF b, VecF c) { return (VecF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
NAG_INLINE VecD fma(VecD a, VecD b, VecD c) { return (VecD)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
#else
NAG_INLINE VecF fma(VecF a, VecF b, VecF c) { return a * b + c; }
NAG_INLINE VecD fma(VecD a, VecD b, VecD c) { return a * b + c; }
#endif

// The larger of two; b where either is NaN, as the x86 instruction does.
NAG_INLINE VecF max(VecF a, VecF b) { return a > b ? a : b; }
NAG_INLINE VecD max(VecD a, VecD b) { return a > b ? a : b; }
NAG_INLINE VecF abs(VecF a) { return (VecF)((VecI)a & 0x7fffffff); }
NAG_INLINE VecD abs(VecD a) { return (VecD)((VecL)a & std::numeric_limits<int64_t>::max()); }

// 2^x for x <= 0, no smaller than 2^-126; NaN stays NaN. n = round(x), r = x - n (exact), 2^r = 1 + r q(r) with q
// fitted for the least largest relative error: of degree 4, 1.1e-7 (within 2 ulp with the roundings), or, where kShort
// says that 16-bit numbers are weighed, of degree 3, 2.9e-6.
template <bool kShort>
NAG_INLINE VecF exp2_nonpositive(VecF x) {
  const VecF bounded = max(splat(-126.0f), x);
  // 1.5 * 2^23 + 127: the low bits of the sum are the rounded integer and the exponent's bias.
  const VecF shift = splat(12583039.0f);
  const VecF shifted = bounded + shift;
  const VecF r = bounded - (shifted - shift);
  VecF p;
  if constexpr (kShort) {
    p = splat(9.582853e-3f);
    p = fma(p, r, splat(5.5906426e-2f));
    p = fma(p, r, splat(2.4024099e-1f));
    p = fma(p, r, splat(6.931242e-1f));
  } else {
    p = splat(1.3264727e-3f);
    p = fma(p, r, splat(9.671513e-3f));
    p = fma(p, r, splat(5.5507336e-2f));
    p = fma(p, r, splat(2.4022242e-1f));
    p = fma(p, r, splat(6.93147e-1f));
  }
  p = fma(p, r, splat(1.0f));
  return p * (VecF)((VecI)shifted << 23);  // a product, not a sum of exponent bits: NaN must stay NaN
}

template <bool kShort>
NAG_INLINE VecD exp2_nonpositive(VecD x) {
  VecD result = x;
  for (int i = 0; i < kDoubles; ++i) {
    result[i] = std::exp2(result[i]);
  }
  return result;
}

// Whether any lane is not zero.
NAG_INLINE bool any(VecI v) {
#if defined(NAG_HAS_AVX512)
  return _mm512_test_epi32_mask((__m512i)v, (__m512i)v) != 0;
#else
  int32_t bits = 0;
  for (int i = 0; i < kFloats; ++i) {
    bits |= v[i];
  }
  return bits != 0;
#endif
}

// ---- 16-bit floats -------------------------------------------------------------------------------------------

NAG_INLINE VecF load(const BFloat16* p) {
  const VecHalf bits = *reinterpret_cast<const VecHalfUnaligned*>(p);
  return (VecF)(__builtin_convertvector(bits, VecU) << 16);
}

// Round to nearest, ties to even; every NaN becomes the quiet one.
NAG_INLINE VecU bfloat16_bits(VecF v) {
  const VecU bits = (VecU)v;
  const VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return v != v ? VecU{} + 0x7fc0u : rounded;
}
NAG_INLINE void store(BFloat16* p, VecF v) {
  *reinterpret_cast<VecHalfUnaligned*>(p) = __builtin_convertvector(bfloat16_bits(v), VecHalf);
}

#if defined(NAG_HAS_AVX512)
NAG_INLINE VecF load(const Half* p) {
  return (VecF)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
NAG_INLINE void store(Half* p, VecF v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(NAG_HAS_AVX2)
NAG_INLINE VecF load(const Half* p) {
  return (VecF)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
NAG_INLINE void store(Half* p, VecF v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
NAG_INLINE VecF load(const Half* p) {
  const VecU bits = __builtin_convertvector(*reinterpret_cast<const VecHalfUnaligned*>(p), VecU);
  const VecU magnitude = bits & 0x7fffu;
  // Normal numbers: move exponent and fraction, then correct the exponent's bias (127 - 15 = 112).
  const VecU normal = (magnitude << 13) + (112u << 23);
  const VecU special = (magnitude << 13) | 0x7f800000u;  // infinity and NaN
  const VecU subnormal = (VecU)(__builtin_convertvector((VecI)magnitude, VecF) * 0x1p-24f);
  const VecU value = magnitude >= 0x7c00u ? special : (magnitude < 0x0400u ? subnormal : normal);
  return (VecF)(value | ((bits & 0x8000u) << 16));
}
NAG_INLINE void store(Half* p, VecF v) {
  const VecU bits = (VecU)v;
  const VecU magnitude = bits & 0x7fffffffu;
  const VecU normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14 a half counts in units of 2^-24: adding 1/2 leaves exactly that count, rounded, in the low bits.
  const VecU subnormal = (VecU)((VecF)magnitude + 0.5f) - 0x3f000000u;
  const VecU large = magnitude > 0x7f800000u ? VecU{} + 0x7e00u : VecU{} + 0x7c00u;  // NaN, or beyond 65520
  const VecU value = magnitude >= 0x477ff000u ? large : (magnitude < 0x38800000u ? subnormal : normal);
  *reinterpret_cast<VecHalfUnaligned*>(p) = __builtin_convertvector(value | ((bits >> 16) & 0x8000u), VecHalf);
}
#endif

#if defined(NAG_HAS_BF16_PAIRS)
// 2^x for x <= 0 that is about to be rounded to bfloat16: within 8e-5.
NAG_INLINE VecF exp2_coarse(VecF x) {
#  if defined(NAG_HAS_AVX512)
#    if !defined( \
        NAG_HAS_AMX)  // there results below 2^-126 become 0 (see TileSession); elsewhere they take 100 times as long
  x = max(splat(-126.0f), x);
#    endif
  const VecF r = (VecF)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
  VecF p = splat(7.802452e-2f);
  p = fma(p, r, splat(2.2606716e-1f));
  p = fma(p, r, splat(6.9583354e-1f));
  p = fma(p, r, splat(9.9992522e-1f));
  return (VecF)_mm512_scalef_ps((__m512)p, (__m512)x);  // p 2^floor(x)
#  else
  return exp2_nonpositive<true>(x);
#  endif
}

// Two weights as one pair, each rounded to the nearest bfloat16 (a tie away from zero). A NaN must come from bfloat16
// numbers or be the default one: its low half is then zero and nothing carries.
NAG_INLINE VecU bf16_pair(VecF low, VecF high) {
  return ((VecU)low + 0x8000u) >> 16 | (((VecU)high + 0x8000u) & 0xffff0000u);
}

// acc + a.low * b.low + a.high * b.high in every lane, the 16-bit halves being bfloat16.
NAG_INLINE VecF dot_bf16_pairs(VecU a, VecU b, VecF acc) {
#  if defined(NAG_HAS_AVX512)
  return (VecF)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#  else  // the same in two exact products and two sums, for builds that try the pairs elsewhere
  acc = fma((VecF)(a & 0xffff0000u), (VecF)(b & 0xffff0000u), acc);
  return fma((VecF)(a << 16), (VecF)(b << 16), acc);
#  endif
}
#endif

// ---- one compute type per accumulator ------------------------------------------------------------------------

struct F32 {
  using Acc = float;
  typedef VecF V;
  static constexpr int kLanes = kFloats;
};
struct F64 {
  using Acc = double;
  typedef VecD V;
  static constexpr int kLanes = kDoubles;
};

template <class T>
struct ComputeOf {
  using type = F32;
};
template <>
struct ComputeOf<double> {
  using type = F64;
};

#if defined(NAG_HAS_AVX512)
// The first `count` elements, zeros beyond.
NAG_INLINE VecF load_first(const float* p, int64_t count) {
  return (VecF)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
}
NAG_INLINE VecD load_first(const double* p, int64_t count) {
  return (VecD)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), p);
}
template <class Short>
NAG_INLINE VecF load_first(const Short* p, int64_t count) {
  Short padded[kFloats];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(padded),
                      _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p));
  return load(padded);
}
#endif

// The first `count` < kLanes elements, zeros beyond.
template <class M, class T>
NAG_INLINE typename M::V load_partial(const T* p, int64_t count) {
#if defined(NAG_HAS_AVX512)
  return load_first(p, count);
#else
  T padded[M::kLanes] = {};
  std::memcpy(padded, p, count * sizeof(T));
  return load(padded);
#endif
}

template <class M, class T>
NAG_INLINE void store_partial(T* p, typename M::V v, int64_t count) {
  T padded[M::kLanes];
  store(padded, v);
  std::memcpy(p, padded, count * sizeof(T));
}

// The elements of a row of `size` from `c` on, zeros beyond its end.
template <class M, class T>
NAG_INLINE typename M::V load_at(const T* row, int64_t c, int64_t size) {
  return c + M::kLanes <= size ? load(row + c) : load_partial<M>(row + c, size - c);
}

template <class M>
inline typename M::Acc lane_sum(typename M::V v) {
  typename M::Acc sum = 0;
  for (int i = 0; i < M::kLanes; ++i) {
    sum += v[i];
  }
  return sum;
}

// Interleave the lower (upper) halves: a0 b0 a1 b1 ...
#define NAG_INTERLEAVE_2(V)                                                             \
  NAG_INLINE V interleave_low(V a, V b) { return __builtin_shufflevector(a, b, 0, 2); } \
  NAG_INLINE V interleave_high(V a, V b) { return __builtin_shufflevector(a, b, 1, 3); }
#define NAG_INTERLEAVE_4(V)                                                                   \
  NAG_INLINE V interleave_low(V a, V b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); } \
  NAG_INLINE V interleave_high(V a, V b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#define NAG_INTERLEAVE_8(V)                                                                                 \
  NAG_INLINE V interleave_low(V a, V b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); } \
  NAG_INLINE V interleave_high(V a, V b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#define NAG_INTERLEAVE_16(V)                                                                            \
  NAG_INLINE V interleave_low(V a, V b) {                                                               \
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);       \
  }                                                                                                     \
  NAG_INLINE V interleave_high(V a, V b) {                                                              \
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31); \
  }
#if NAG_VECTOR_BYTES == 16
NAG_INTERLEAVE_4(VecF)
NAG_INTERLEAVE_2(VecD)
#elif NAG_VECTOR_BYTES == 32
NAG_INTERLEAVE_8(VecF)
NAG_INTERLEAVE_4(VecD)
#else
NAG_INTERLEAVE_16(VecF)
NAG_INTERLEAVE_8(VecD)
#endif
#undef NAG_INTERLEAVE_2
#undef NAG_INTERLEAVE_4
#undef NAG_INTERLEAVE_8
#undef NAG_INTERLEAVE_16

// Transpose kLanes x kLanes in registers: log2(kLanes) rounds that interleave row i with row i + kLanes / 2.
template <class M>
NAG_INLINE void transpose(typename M::V (&rows)[M::kLanes]) {
#if NAG_VECTOR_BYTES == 32
  if constexpr (M::kLanes == 8) {
    // Half the shuffles of the general form, which costs two of them per interleave here: 4 x 4 transposes within
    // the 16-byte lanes, then an exchange of lanes.
    for (int i = 0; i < 8; i += 4) {
      const auto low01 = __builtin_shufflevector(rows[i], rows[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
      const auto high01 = __builtin_shufflevector(rows[i], rows[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
      const auto low23 = __builtin_shufflevector(rows[i + 2], rows[i + 3], 0, 8, 1, 9, 4, 12, 5, 13);
      const auto high23 = __builtin_shufflevector(rows[i + 2], rows[i + 3], 2, 10, 3, 11, 6, 14, 7, 15);
      rows[i] = __builtin_shufflevector(low01, low23, 0, 1, 8, 9, 4, 5, 12, 13);
      rows[i + 1] = __builtin_shufflevector(low01, low23, 2, 3, 10, 11, 6, 7, 14, 15);
      rows[i + 2] = __builtin_shufflevector(high01, high23, 0, 1, 8, 9, 4, 5, 12, 13);
      rows[i + 3] = __builtin_shufflevector(high01, high23, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    for (int i = 0; i < 4; ++i) {
      const auto upper = __builtin_shufflevector(rows[i], rows[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
      rows[i + 4] = __builtin_shufflevector(rows[i], rows[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
      rows[i] = upper;
    }
    return;
  }
#endif
  constexpr int kHalf = M::kLanes / 2;
#pragma GCC unroll 4
  for (int round = M::kLanes; round > 1; round /= 2) {
    typename M::V next[M::kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kHalf; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + kHalf]);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + kHalf]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < M::kLanes; ++i) {
      rows[i] = next[i];
    }
  }
}

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
