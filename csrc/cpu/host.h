// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// What the host halves of both operations share: dtypes, settings, outputs, parallel loops.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "checks.h"
#include "new_tensor.h"
#include "params.h"

namespace nag {

inline DType kernel_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
      return DType::kHalf;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Double:
      return DType::kDouble;
    default:
      return DType::kFloat;
  }
}

inline Rule kernel_rule(const std::string& rule) {
  return rule == "nasa" ? Rule::kNasa : rule == "vsf" ? Rule::kVsf : Rule::kNag;
}

inline std::vector<Settings> read_settings(double scale, double tau, double alpha) { return {{scale, tau, alpha}}; }

// One entry where every setting is a scalar, else one per sample.
inline std::vector<Settings> read_settings(const Tensor& scale, const Tensor& tau, const Tensor& alpha) {
  int64_t samples = 1;
  for (const Tensor* x : {&scale, &tau, &alpha}) {
    if (x->dim() == 1) {
      samples = x->size(0);
    }
  }
  const auto read = [](const Tensor& x, int64_t sample) {
    const float* values = static_cast<const float*>(x.const_data_ptr());
    return static_cast<double>(values[x.dim() == 1 ? sample * x.stride(0) : 0]);
  };
  std::vector<Settings> settings;
  for (int64_t i = 0; i < samples; ++i) {
    settings.push_back({read(scale, i), read(tau, i), read(alpha, i)});
  }
  return settings;
}

// The kernels read rows of the last dimension; any other strides are read in place.
inline Tensor unit_last_stride(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.stride(last) == 1 || x.size(last) <= 1 ? x : torch::stable::contiguous(x);
}

// Runs work(item, worker) for every item; items go to whichever worker is free next.
template <class F>
void for_each(int64_t items, int64_t workers, const F& work) {
  if (workers <= 1) {
    for (int64_t item = 0; item < items; ++item) {
      work(item, int64_t(0));
    }
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t item = next++; item < items; item = next++) {
        work(item, worker);
      }
    }
  });
}

}  // namespace nag
