// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// out = a Z+ - b Z- with the norms over a whole row: one block per row, both inputs read once where its threads can
// hold them.
#pragma once

#include "softmax.cuh"
#include "tile_size.h"

namespace nag {
namespace device {

struct Float {};  // element type besides Half and BFloat16

template <class T>
constexpr int kElementBytes = 2;
template <>
constexpr int kElementBytes<Float> = 4;

// kCount consecutive elements from byte address `from`, as floats.
template <class T, int kCount>
NAG_DEVICE void load_elements(const char* from, float (&x)[kCount]) {
  if constexpr (kCount == 1) {
    if constexpr (kElementBytes<T> == 4) {
      uint32_t word[1];
      load(from, word);
      x[0] = bits_as_float(word[0]);
    } else {
      x[0] = low(T(), load_two_bytes(from));
    }
  } else if constexpr (kElementBytes<T> == 4) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      uint32_t words[4];
      load(from + 4 * i, words);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        x[i + j] = bits_as_float(words[j]);
      }
    }
  } else {
    uint32_t words[kCount / 2];
    load(from, words);
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      x[2 * i] = low(T(), words[i]);
      x[2 * i + 1] = high(T(), words[i]);
    }
  }
}

template <class T, int kCount>
NAG_DEVICE void store_elements(char* to, const float (&x)[kCount]) {
  if constexpr (kElementBytes<T> == 4) {
    if constexpr (kCount == 1) {
      const uint32_t word[1] = {float_as_bits(x[0])};
      store(to, word);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; i += 4) {
        const uint32_t words[4] = {float_as_bits(x[i]), float_as_bits(x[i + 1]), float_as_bits(x[i + 2]),
                                   float_as_bits(x[i + 3])};
        store(to + 4 * i, words);
      }
    }
  } else if constexpr (kCount == 1) {
    store_two_bytes(to, pack(T(), x[0], 0.0f));
  } else {
    uint32_t words[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      words[i] = pack(T(), x[2 * i], x[2 * i + 1]);
    }
    store(to, words);
  }
}

// The sum over the block, the same in every thread and in the same order every time; `partial` holds a float per warp.
NAG_DEVICE float block_sum(float x, float* partial) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    x += shuffle_xor(x, mask);
  }
  if (thread_index() % kWarp == 0) {
    partial[thread_index() / kWarp] = x;
  }
  sync_threads();
  float sum = 0.0f;
  for (int i = 0; i < thread_count() / kWarp; ++i) {
    sum += partial[i];
  }
  return sum;
}

}  // namespace device

constexpr int kGuidanceSharedBytes = 2 * kGuidanceMaxThreads / kWarp * 4;

// One block = one row. kVector elements at a time: 8 (16 bytes of a 16-bit type) or, where rows are not aligned, 1.
template <class In, class Out, int kVector>
NAG_KERNEL(kGuidanceMaxThreads)
guidance_kernel(const GuidanceParams p) {
  using namespace device;
  float* const partial = reinterpret_cast<float*>(shared_memory());
  const int64_t row = block_index();
  const SampleSettings settings = settings_of(p.settings, row / p.rows_per_sample);
  const char* const positive = static_cast<const char*>(p.positive) + row * p.positive_row * kElementBytes<In>;
  const char* const negative = static_cast<const char*>(p.negative) + row * p.negative_row * kElementBytes<In>;
  char* const out = static_cast<char*>(p.out) + row * p.channels * kElementBytes<Out>;
  const int stride = thread_count() * kVector;
  const int begin = thread_index() * kVector;

  float plus[kGuidanceHeld][kVector] = {};
  float minus[kGuidanceHeld][kVector] = {};
#pragma unroll
  for (int i = 0; i < kGuidanceHeld; ++i) {
    const int at = begin + i * stride;
    if (at < p.channels) {
      load_elements<In>(positive + at * kElementBytes<In>, plus[i]);
      load_elements<In>(negative + at * kElementBytes<In>, minus[i]);
    }
  }
  float norm_positive = 0.0f;
  float norm_guided = 0.0f;
  const auto add = [&](const float (&x)[kVector], const float (&y)[kVector]) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      norm_positive += magnitude(x[j]);
      norm_guided += magnitude(settings.scale * x[j] - (settings.scale - 1.0f) * y[j]);
    }
  };
  if (p.rule == RowRule::kNag) {
#pragma unroll
    for (int i = 0; i < kGuidanceHeld; ++i) {
      add(plus[i], minus[i]);
    }
    for (int at = begin + kGuidanceHeld * stride; at < p.channels; at += stride) {
      float x[kVector];
      float y[kVector];
      load_elements<In>(positive + at * kElementBytes<In>, x);
      load_elements<In>(negative + at * kElementBytes<In>, y);
      add(x, y);
    }
    norm_positive = block_sum(norm_positive, partial);
    norm_guided = block_sum(norm_guided, partial + kGuidanceMaxThreads / kWarp);
  }
  float a;
  float b;
  row_factors(p.rule, settings, norm_positive, norm_guided, &a, &b);
  const auto write = [&](int at, const float (&x)[kVector], const float (&y)[kVector]) {
    float blended[kVector];
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      blended[j] = a * x[j] - b * y[j];
    }
    store_elements<Out>(out + at * kElementBytes<Out>, blended);
  };
#pragma unroll
  for (int i = 0; i < kGuidanceHeld; ++i) {
    if (begin + i * stride < p.channels) {
      write(begin + i * stride, plus[i], minus[i]);
    }
  }
  for (int at = begin + kGuidanceHeld * stride; at < p.channels; at += stride) {
    float x[kVector];
    float y[kVector];
    load_elements<In>(positive + at * kElementBytes<In>, x);
    load_elements<In>(negative + at * kElementBytes<In>, y);
    write(at, x, y);
  }
}

}  // namespace nag
