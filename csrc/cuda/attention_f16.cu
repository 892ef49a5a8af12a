// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0

#include "attention_types.cuh"

namespace nag {

void launch_text_f16(const Launch& launch, AttentionParams p) { launch_text<device::Half>(launch, p); }
void launch_branches_f16(const Launch& launch, const AttentionParams& p) { launch_branches<device::Half>(launch, p); }

}  // namespace nag
