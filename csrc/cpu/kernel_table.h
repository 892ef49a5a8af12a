// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The table of one SIMD path: every dtype of both operations and of the gradient. A constant, so that reaching it runs
// no wide code.
#pragma once

#include "attention_kernel.h"
#include "gradient_kernel.h"
#include "guidance_kernel.h"

namespace nag {
namespace NAG_ISA {
namespace {

// The gradient of bfloat16 is computed in float32: where Z+ is nearly 0, its sign decides, which pairs of bfloat16 may
// flip.
template <class BFloat16Tiles = RegisterTiles<Plain<BFloat16>>>
constexpr KernelTable kernel_table(const char* path, const char* bfloat16_path) {
  return {bfloat16_path,  // the widest path of the table names it
          {Attention<RegisterTiles<Plain<float>>>::kernel(path), Attention<RegisterTiles<Plain<Half>>>::kernel(path),
           Attention<BFloat16Tiles>::kernel(bfloat16_path), Attention<RegisterTiles<Plain<double>>>::kernel(path)},
          {Guidance<float>::kernel(path), Guidance<Half>::kernel(path), Guidance<BFloat16>::kernel(path),
           Guidance<double>::kernel(path)},
          {Gradient<RegisterTiles<Plain<float>>>::kernel(), Gradient<RegisterTiles<Plain<Half>>>::kernel(),
           Gradient<RegisterTiles<Plain<BFloat16>>>::kernel(), Gradient<RegisterTiles<Plain<double>>>::kernel()}};
}

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
