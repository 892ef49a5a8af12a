// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The portable path: 16-byte vectors (SSE2 on x86, NEON on Arm), no target beyond the compiler's own.

#include "target.h"

#define NAG_ISA portable
#define NAG_VECTOR_BYTES 16
#if defined(__aarch64__)
#  define NAG_PATH "neon"
#  define NAG_TILE_ROWS 12  // 32 registers: 24 accumulators
#else
#  define NAG_PATH "default"
#  define NAG_TILE_ROWS 6  // 16 registers: 12 accumulators
#endif

#include "kernel_table.h"

namespace nag {
namespace {
constexpr KernelTable kTable = portable::kernel_table(NAG_PATH, NAG_PATH);
}

const KernelTable& default_kernels() { return kTable; }

}  // namespace nag
