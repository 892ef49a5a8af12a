// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// New tensors for outputs and scratch memory, on CPUs and GPUs. Where there is no memory, the error says so.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "checks.h"

namespace nag {

// The number by which torch's C functions know a dtype.
inline int32_t dtype_number(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    default:
      return aoti_torch_dtype_float32();
  }
}

inline std::vector<int64_t> shape_of(const Tensor& x) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < x.dim(); ++i) {
    shape.push_back(x.size(i));
  }
  return shape;
}

// The text of the last exception within torch. The function that has it came with torch 2.13, so it is looked up by
// name.
inline std::string last_exception() {
  using What = const char* (*)();
  void* const what = dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace");
  return what == nullptr ? "most likely out of memory (torch says why from 2.13 on)" : reinterpret_cast<What>(what)();
}

// A tensor of this shape on the device of `like`, uninitialised and contiguous.
inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (int64_t i = static_cast<int64_t>(shape.size()) - 2; i >= 0; --i) {
    strides[i] = strides[i + 1] * std::max<int64_t>(shape[i + 1], 1);
  }
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle out;
  if (aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(), dtype_number(dtype),
                               device_type, like.get_device_index(), &out) != TORCH_SUCCESS) {
    std::string sizes;
    for (const int64_t size : shape) {
      sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
    }
    throw std::runtime_error("nag: torch could not make a tensor (" + sizes + ") in " + dtype_name(dtype) + " on " +
                             device_name(like) + ": " + last_exception());
  }
  return Tensor(out);
}

}  // namespace nag
