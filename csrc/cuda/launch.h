// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The one home of what every operation needs on the host: device guard, current stream, launch check, and the tensors
// as the kernels want them.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "checks.h"
#include "kernel_launch.h"
#include "new_tensor.h"

#if !defined(NAG_CUDA_KEY)
#  define NAG_CUDA_KEY CUDA  // the tests register the host half, over emulated kernels, for CPU
#endif

namespace nag {

// The device of `x` as the current one, and its current stream, for as long as this lives.
class Launch {
 public:
  explicit Launch(const Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    target_.stream = static_cast<cudaStream_t>(stream);
    STD_CUDA_CHECK(
        cudaDeviceGetAttribute(&target_.shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, x.get_device_index()));
  }

  const Target& target() const { return target_; }
  static void check(cudaError_t error) { STD_CUDA_CHECK(error); }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  Target target_;
};

// How often each kernel was launched; read by the Python module.
enum class Counter { kGuidance, kText, kBranches, kCluster, kCount };
inline std::atomic<int64_t> launches[static_cast<int>(Counter::kCount)];
inline void count(Counter kernel) { launches[static_cast<int>(kernel)].fetch_add(1, std::memory_order_relaxed); }

// Compute capability times 10.
inline int chip_of(const Tensor& x) {
  int major = 0;
  int minor = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, x.get_device_index()));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, x.get_device_index()));
  return 10 * major + minor;
}

inline Element element_of(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 ? Element::kBFloat16
         : dtype == ScalarType::Half   ? Element::kHalf
                                       : Element::kFloat;
}

inline RowRule row_rule(const std::string& rule) {
  return rule == "nasa" ? RowRule::kNasa : rule == "vsf" ? RowRule::kVsf : RowRule::kNag;
}

inline Settings kernel_settings(double scale, double tau, double alpha) {
  return {{nullptr, nullptr, nullptr},
          {0, 0, 0},
          {static_cast<float>(scale), static_cast<float>(tau), static_cast<float>(alpha)}};
}

inline Settings kernel_settings(const Tensor& scale, const Tensor& tau, const Tensor& alpha) {
  Settings settings{};
  const Tensor* const tensors[] = {&scale, &tau, &alpha};
  for (int i = 0; i < 3; ++i) {
    settings.tensor[i] = static_cast<const float*>(tensors[i]->const_data_ptr());
    settings.stride[i] = tensors[i]->dim() == 1 && tensors[i]->size(0) > 1 ? tensors[i]->stride(0) : 0;
  }
  return settings;
}

// Whether rows of the last dimension can be read in units of 16 bytes.
inline bool rows_aligned(const Tensor& x) {
  const int64_t unit = 16 / static_cast<int64_t>(x.element_size());
  const int64_t last = x.dim() - 1;
  bool aligned = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 && x.size(last) % unit == 0;
  aligned = aligned && (x.stride(last) == 1 || x.size(last) <= 1);
  for (int64_t i = 0; i < last; ++i) {
    aligned = aligned && (x.size(i) <= 1 || x.stride(i) % unit == 0);
  }
  return aligned;
}

// `x` where its rows are aligned, else a copy of which they are. A fresh tensor begins on 16 bytes.
inline Tensor aligned(const Tensor& x) {
  if (rows_aligned(x)) {
    return x;
  }
  const Tensor copy = torch::stable::contiguous(x);  // none where x is contiguous but begins between units
  return rows_aligned(copy) ? copy : torch::stable::clone(copy);
}

}  // namespace nag
