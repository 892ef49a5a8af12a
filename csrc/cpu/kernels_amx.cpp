// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// AVX-512 with matrix registers: bfloat16 through AMX, the other types as in kernels_avx512.cpp.

#include "params.h"
#include "target.h"

#if defined(NAG_X86)

#  define NAG_ISA amx
#  define NAG_VECTOR_BYTES 64
#  define NAG_TILE_ROWS 12  // 32 registers: 24 accumulators, 2 of the panel, 1 broadcast
#  define NAG_HAS_AVX512 1
#  define NAG_HAS_BF16_PAIRS 1
#  define NAG_HAS_AMX 1

NAG_TARGET_BEGIN("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#  include "kernel_table.h"
#  include "matrix_tiles.h"
NAG_TARGET_END

namespace nag {
namespace {
constexpr KernelTable kTable = amx::kernel_table<amx::MatrixTiles>("avx512", "amx");
}

const KernelTable* amx_kernels() { return &kTable; }

}  // namespace nag

#else

namespace nag {
const KernelTable* amx_kernels() { return nullptr; }
}  // namespace nag

#endif
