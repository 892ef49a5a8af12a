// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// AVX2 with FMA and half conversion: 32-byte vectors.

#include "params.h"
#include "target.h"

#if defined(NAG_X86)

#  define NAG_ISA avx2
#  define NAG_VECTOR_BYTES 32
#  define NAG_TILE_ROWS 6  // 16 registers: 12 accumulators, 2 of the panel, 1 broadcast
#  define NAG_HAS_AVX2 1

NAG_TARGET_BEGIN("avx2,fma,f16c")
#  include "kernel_table.h"
NAG_TARGET_END

namespace nag {
namespace {
constexpr KernelTable kTable = avx2::kernel_table("avx2", "avx2");
}

const KernelTable* avx2_kernels() { return &kTable; }

}  // namespace nag

#else

namespace nag {
const KernelTable* avx2_kernels() { return nullptr; }
}  // namespace nag

#endif
