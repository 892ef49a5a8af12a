// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Head size to kernel, for one element type. attention_<type>.cu instantiate it: one file per type, to compile side by
// side.
#pragma once

#include "attention_kernel.cuh"
#include "attention_launch.h"
#include "text_kernel.cuh"

namespace nag {

template <class T, int kSize, int kTiles>
void launch_text_tiles(const Launch& launch, AttentionParams p) {
  p.keep = text_shared_bytes(kSize, kTiles, p.heads, true) <= launch.shared_limit();
  const int64_t tiles = (p.tokens + 16 * kTiles - 1) / (16 * kTiles);
  launch.run(text_attention_kernel<T, kSize, kTiles>, tiles * p.batch, kTextWarps * kWarp,
             text_shared_bytes(kSize, kTiles, p.heads, p.keep), p);
}

template <class T>
void launch_text(const Launch& launch, const AttentionParams& p) {
  const bool wide = p.tokens >= kTextWideTokens;
  switch (next_size(kTextSizes, p.size)) {
    case 40:
      return wide ? launch_text_tiles<T, 40, 2>(launch, p) : launch_text_tiles<T, 40, 1>(launch, p);
    case 64:
      return wide ? launch_text_tiles<T, 64, 2>(launch, p) : launch_text_tiles<T, 64, 1>(launch, p);
    case 80:
      return launch_text_tiles<T, 80, 1>(launch, p);
    case 128:
      return launch_text_tiles<T, 128, 1>(launch, p);
    default:
      return launch_text_tiles<T, 160, 1>(launch, p);
  }
}

template <class T, int kSize>
void launch_branches_size(const Launch& launch, const AttentionParams& p) {
  using Tile = BranchTile<kSize>;
  const int64_t tiles = (p.tokens + Tile::kRows - 1) / Tile::kRows;
  launch.run(branches_kernel<T, kSize>, tiles * p.heads * p.batch, Tile::kWarps * kWarp, Tile::kSharedBytes, p);
}

template <class T>
void launch_branches(const Launch& launch, const AttentionParams& p) {
  switch (next_size(kBranchSizes, p.size)) {
    case 64:
      return launch_branches_size<T, 64>(launch, p);
    case 96:
      return launch_branches_size<T, 96>(launch, p);
    case 128:
      return launch_branches_size<T, 128>(launch, p);
    case 192:
      return launch_branches_size<T, 192>(launch, p);
    default:
      return launch_branches_size<T, 256>(launch, p);
  }
}

}  // namespace nag
