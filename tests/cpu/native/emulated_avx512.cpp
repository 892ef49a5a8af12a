// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The AVX-512 paths, with bfloat16 pairs or (NAG_EMULATED_TILES) tiles, on 64-byte vectors lowered to whatever this
// machine has. Linked in place of the AVX2 kernels, so that the host code takes it and a machine without AVX-512 tests
// the logic of those paths (tile heights, panels, pairs, tiles), though not the instructions.

#include "cpu/params.h"
#include "cpu/target.h"

#define NAG_ISA emulated_avx512
#define NAG_VECTOR_BYTES 64
#define NAG_TILE_ROWS 12
#define NAG_HAS_BF16_PAIRS 1

#if defined(NAG_X86)
NAG_TARGET_BEGIN("avx2,fma")
#endif
#include "cpu/attention_kernel.h"
#include "cpu/guidance_kernel.h"
#include "cpu/matrix_tiles.h"
#if defined(NAG_X86)
NAG_TARGET_END
#endif

namespace nag {
namespace {

// float32 and bfloat16 stand for the others, which differ in how a row is read and written only (and take long to
// compile when every 64-byte operation becomes two).
const KernelTable& table() {
  using namespace emulated_avx512;
  static KernelTable table = default_kernels();
#if defined(NAG_EMULATED_TILES)
  const char* bfloat16_path = "amx";
  using BFloat16Tiles = MatrixTiles;
#else
  const char* bfloat16_path = "avx512_bf16";
  using BFloat16Tiles = RegisterTiles<Pairs>;
#endif
  table.capability = bfloat16_path;
  table.attention[static_cast<int>(DType::kFloat)] = Attention<RegisterTiles<Plain<float>>>::kernel("avx512");
  table.attention[static_cast<int>(DType::kBFloat16)] = Attention<BFloat16Tiles>::kernel(bfloat16_path);
  table.guidance[static_cast<int>(DType::kFloat)] = Guidance<float>::kernel("avx512");
  table.guidance[static_cast<int>(DType::kBFloat16)] = Guidance<BFloat16>::kernel("avx512");
  return table;
}

}  // namespace

const KernelTable* avx2_kernels() { return &table(); }
const KernelTable* avx512_kernels() { return nullptr; }
const KernelTable* avx512_bf16_kernels() { return nullptr; }
const KernelTable* amx_kernels() { return nullptr; }

}  // namespace nag
