// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Which SIMD path runs on this machine, and how often each has run.
#pragma once

#include <cstdint>

#include "params.h"

namespace nag {

// The kernels of the widest path that this build has, the processor can run and ATEN_CPU_CAPABILITY allows
// (default, avx2, avx512, avx512_bf16, amx, as an upper bound, the first three as torch reads them; read once). On
// Intel's processors avx512_bf16 must be asked for: see capability.cpp.
const KernelTable& kernels();

enum class Op { kAttention, kGuidance, kGradient };

void count_call(Op op, const char* path);

// Calls visit(operation, path, count) for every counter above zero.
void visit_calls(void (*visit)(void* context, const char* op, const char* path, int64_t count), void* context);

}  // namespace nag
