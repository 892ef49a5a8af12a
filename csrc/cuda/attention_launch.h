// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The bridge between attention.cu, which checks, and the files that hold the kernels of one element type each.
#pragma once

#include "launch.h"

namespace nag {

void launch_text_bf16(const Launch& launch, AttentionParams p);
void launch_text_f16(const Launch& launch, AttentionParams p);
void launch_branches_bf16(const Launch& launch, const AttentionParams& p);
void launch_branches_f16(const Launch& launch, const AttentionParams& p);

// out [N, C] = a Z+ - b Z-; float32 inputs give an output of any type, others their own.
void launch_guidance(const Launch& launch, const GuidanceParams& p, ScalarType in, ScalarType out, bool vectors);

}  // namespace nag
