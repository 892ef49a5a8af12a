// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0

#include "attention_types.cuh"

namespace nag {

cudaError_t launch_text_f16(const Target& target, AttentionParams p) { return launch_text<device::Half>(target, p); }
cudaError_t launch_branches_f16(const Target& target, const AttentionParams& p) {
  return launch_branches<device::Half>(target, p);
}

}  // namespace nag
