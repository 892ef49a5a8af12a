// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The AVX-512 paths, bfloat16 pairs included, with 64-byte vectors lowered to whatever this machine has. Linked in
// place of the AVX2 kernels, so that the host code takes it and a machine without AVX-512 tests the logic of those
// paths (tile heights, panels, pairs), though not the instructions.

#include "cpu/params.h"
#include "cpu/target.h"

#define NAG_ISA emulated_avx512
#define NAG_VECTOR_BYTES 64
#define NAG_TILE_ROWS 12
#define NAG_HAS_BF16_PAIRS 1

#if defined(NAG_X86)
NAG_TARGET_BEGIN("avx2,fma")
#endif
#include "cpu/kernel_table.h"
#if defined(NAG_X86)
NAG_TARGET_END
#endif

namespace nag {
namespace {
constexpr KernelTable kTable = emulated_avx512::kernel_table<emulated_avx512::Pairs>("avx512", "avx512_bf16");
}

const KernelTable* avx2_kernels() { return &kTable; }
const KernelTable* avx512_kernels() { return nullptr; }
const KernelTable* avx512_bf16_kernels() { return nullptr; }

}  // namespace nag
