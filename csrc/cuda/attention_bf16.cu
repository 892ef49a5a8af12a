// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0

#include "attention_types.cuh"

namespace nag {

void launch_text_bf16(const Launch& launch, AttentionParams p) { launch_text<device::BFloat16>(launch, p); }
void launch_branches_bf16(const Launch& launch, const AttentionParams& p) { launch_branches<device::BFloat16>(launch, p); }

}  // namespace nag
