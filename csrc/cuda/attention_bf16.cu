// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0

#include "attention_types.cuh"

namespace nag {

cudaError_t launch_text_bf16(const Target& target, AttentionParams p) {
  return launch_text<device::BFloat16>(target, p);
}
cudaError_t launch_branches_bf16(const Target& target, const AttentionParams& p) {
  return launch_branches<device::BFloat16>(target, p);
}
cudaError_t find_text() { return find_code(text_attention_kernel<device::BFloat16, 64, 1>); }
cudaError_t find_branches() { return find_code(branches_kernel<device::BFloat16, 64>); }

}  // namespace nag
