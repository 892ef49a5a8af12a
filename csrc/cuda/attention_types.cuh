// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Head size to kernel, for one element type. attention_<type>.cu instantiate it: one file per type, to compile side by
// side.
#pragma once

#include "attention_kernel.cuh"
#include "kernel_launch.h"
#include "text_kernel.cuh"

namespace nag {

template <class T, int kSize, int kTiles>
cudaError_t launch_text_tiles(const Target& target, AttentionParams p) {
  p.keep = text_shared_bytes(kSize, kTiles, p.heads, true) <= target.shared_limit;
  const int64_t tiles = (p.tokens + 16 * kTiles - 1) / (16 * kTiles);
  return launch_kernel(target, text_attention_kernel<T, kSize, kTiles>, tiles * p.batch, kTextWarps * kWarp,
                       text_shared_bytes(kSize, kTiles, p.heads, p.keep), p);
}

template <class T>
cudaError_t launch_text(const Target& target, const AttentionParams& p) {
  const bool wide = p.tokens >= kTextWideTokens;
  switch (next_size(kTextSizes, p.size)) {
    case 40:
      return wide ? launch_text_tiles<T, 40, 2>(target, p) : launch_text_tiles<T, 40, 1>(target, p);
    case 64:
      return wide ? launch_text_tiles<T, 64, 2>(target, p) : launch_text_tiles<T, 64, 1>(target, p);
    case 80:
      return launch_text_tiles<T, 80, 1>(target, p);
    case 128:
      return launch_text_tiles<T, 128, 1>(target, p);
    default:
      return launch_text_tiles<T, 160, 1>(target, p);
  }
}

template <class T, int kSize>
cudaError_t launch_branches_size(const Target& target, const AttentionParams& p) {
  using Tile = BranchTile<kSize>;
  const int64_t tiles = (p.tokens + Tile::kRows - 1) / Tile::kRows;
  return launch_kernel(target, branches_kernel<T, kSize>, tiles * p.heads * p.batch, Tile::kWarps * kWarp,
                       Tile::kSharedBytes, p);
}

template <class T>
cudaError_t launch_branches(const Target& target, const AttentionParams& p) {
  switch (next_size(kBranchSizes, p.size)) {
    case 64:
      return launch_branches_size<T, 64>(target, p);
    case 96:
      return launch_branches_size<T, 96>(target, p);
    case 128:
      return launch_branches_size<T, 128>(target, p);
    case 192:
      return launch_branches_size<T, 192>(target, p);
    default:
      return launch_branches_size<T, 256>(target, p);
  }
}

}  // namespace nag
