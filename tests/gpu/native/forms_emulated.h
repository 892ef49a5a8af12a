// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Launches of the attention kernels on the emulated device.
#pragma once

#include <stdexcept>

#include "attention_kernel.cuh"
#include "cluster_kernel.cuh"
#include "tensor_map.h"
#include "text_kernel.cuh"

namespace nag {

inline bool encode_tensor_map(const void* rows, const int64_t (&sizes)[4], const int64_t (&strides)[3], int box_rows,
                              TensorMap* map) {
  return device::encode_map(rows, sizes, strides, box_rows, map);
}

template <class T, int kSize, int kTiles>
void run_text(const AttentionParams& p, int order, bool early) {
  const int64_t tiles = (p.tokens + 16 * kTiles - 1) / (16 * kTiles);
  device::launch(tiles * p.batch, kTextWarps * kWarp, text_shared_bytes(kSize, kTiles, p.heads, p.keep), order, early,
                 [&] { text_attention_kernel<T, kSize, kTiles>(p); });
}

template <class T, int kTiles>
void text_of(const AttentionParams& p, int order, bool early) {
  switch (next_size(kTextSizes, p.size)) {
    case 40:
      return run_text<T, 40, kTiles>(p, order, early);
    case 80:
      return run_text<T, 80, 1>(p, order, early);
    case 128:
      return run_text<T, 128, 1>(p, order, early);
    case 160:
      return run_text<T, 160, 1>(p, order, early);
    case 64:
      return run_text<T, 64, kTiles>(p, order, early);
    default:
      throw std::invalid_argument("no kernel for this head size");
  }
}

template <class T, int kSize>
void run_branches(const AttentionParams& p, int order, bool early) {
  using Tile = BranchTile<kSize>;
  const int64_t tiles = (p.tokens + Tile::kRows - 1) / Tile::kRows;
  device::launch(tiles * p.heads * p.batch, Tile::kWarps * kWarp, Tile::kSharedBytes, order, early,
                 [&] { branches_kernel<T, kSize>(p); });
}

template <class T>
void branches_of(const AttentionParams& p, int order, bool early) {
  switch (next_size(kBranchSizes, p.size)) {
    case 96:
      return run_branches<T, 96>(p, order, early);
    case 128:
      return run_branches<T, 128>(p, order, early);
    case 192:
      return run_branches<T, 192>(p, order, early);
    case 256:
      return run_branches<T, 256>(p, order, early);
    case 64:
      return run_branches<T, 64>(p, order, early);
    default:
      throw std::invalid_argument("no kernel for this head size");
  }
}

// `blocks` of a cluster, 0: as planned; `maps`: whether the copy engine may fetch.
inline void cluster(const AttentionParams& a, int blocks, bool maps, int order, bool early) {
  ClusterPlan plan = cluster_plan(a.heads, a.size);
  if (blocks > 0) {
    plan.blocks = blocks;
    plan.shared_bytes += (a.heads + blocks - 1) / blocks * cluster_kept_bytes(next_size(kClusterSizes, a.size));
  }
  ClusterParams p = cluster_params(a, plan);
  for (bool& by_threads : p.by_threads) {
    by_threads = by_threads || !maps;
  }
  const int64_t tiles = (a.tokens + kClusterRows - 1) / kClusterRows;
  device::launch(
      tiles * a.batch * plan.blocks, kClusterFetching + kClusterAttending, plan.shared_bytes, order, early,
      [&] {
        if (a.size > 64) {
          return cluster_kernel<device::BFloat16, 128>(p);
        }
        cluster_kernel<device::BFloat16, 64>(p);
      },
      plan.blocks);
}

}  // namespace nag
