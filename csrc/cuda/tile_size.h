// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Tiles and limits of the CUDA kernels, and the shared memory that they come to. No GPU has timed any of them.
#pragma once

#include <cstdint>

namespace nag {

constexpr int kWarp = 32;

// The smallest of the sizes that a kernel is compiled for that holds `size`; 0 if none does.
template <int kCount>
constexpr int next_size(const int (&sizes)[kCount], int size) {
  for (int i = 0; i < kCount; ++i) {
    if (size <= sizes[i]) {
      return sizes[i];
    }
  }
  return 0;
}

// The one-launch kernel for short texts: head sizes that it is compiled for (a size in between runs in the next one).
constexpr int kTextSizes[] = {40, 64, 80, 128, 160};
constexpr int kTextMaxSize = 160;
constexpr int kTextMaxLength = 512;  // of each text; a longer one wants its keys in shared memory
constexpr int kTextWarps = 8;        // each takes every 8th head of the tile's queries
// 32 queries share the keys that are read where the registers hold two accumulators and there are tiles enough for the
// chip (some 100 multiprocessors); else 16.
constexpr int kTextWideMaxSize = 64;
constexpr int64_t kTextWideTokens = 2048;

template <int kSize, int kTiles>
constexpr int kTextSlot = kTiles * 16 * kSize;  // floats: Z+ or Z- of one head for the tile's queries
// Z+ and Z- of every head (keep), or Z+ of the head in work of each warp; and two norms per query and warp.
inline int64_t text_shared_bytes(int64_t size, int64_t tiles, int64_t heads, bool keep) {
  return (keep ? 2 * heads : kTextWarps) * tiles * 16 * size * 4 + kTextWarps * tiles * 16 * 2 * 4;
}

// The branches kernel, for any lengths: one tile of queries of one head, keys through shared memory.
constexpr int kBranchSizes[] = {64, 96, 128, 192, 256};
constexpr int kBranchMaxSize = 256;

template <int kSize>
struct BranchTile {
  // Above 128 the accumulator takes 96 to 128 registers: the query's fragments move to shared memory, and half of the
  // warps keep the whole under 99 KiB (sm_86, sm_89, sm_120).
  static constexpr bool kQueryInRegisters = kSize <= 128;
  static constexpr int kWarps = kQueryInRegisters ? 8 : 4;
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kKeys = kQueryInRegisters ? 64 : 32;
  static constexpr int kRowBytes = 2 * kSize + 16;  // an odd number of 16-byte units: 8 rows of a matrix, 8 bank groups
  static constexpr int kStageBytes = 2 * kKeys * kRowBytes;  // keys and values
  static constexpr int kQueryBytes = kQueryInRegisters ? 0 : kRows * kSize * 2;
  static constexpr int kSharedBytes = kQueryBytes + 2 * kStageBytes + 2 * kKeys;
};

// The cluster kernel, on sm_90a: a block holds 128 queries; four warps fetch tiles of keys and values, twice four
// attend.
constexpr int kClusterSizes[] = {64, 128};
constexpr int kClusterMaxSize = 128;
constexpr int kClusterRows = 128;
constexpr int kClusterFetching = 128;  // threads
constexpr int kClusterAttending = 256;
constexpr int kClusterMaxBlocks = 8;  // that every GPU of sm_90 can run side by side
constexpr int kClusterMinSlots = 4;
constexpr int kClusterMaxSlots = 8;
constexpr int kClusterSharedLimit = 227 << 10;

// Z+ and Z- of a head that waits for the others: 16 bits a number, and four scales a thread.
constexpr int cluster_kept_bytes(int size) { return kClusterAttending * 2 * size + kClusterAttending * 16; }

constexpr int cluster_keys(int size) { return 64 * 128 / size; }  // of a tile

template <int kSize>
struct ClusterTile {
  static constexpr int kKeys = cluster_keys(kSize);
  static constexpr int kBoxBytes = kKeys * 128;  // of 64 channels
  static constexpr int kBytes = kSize / 64 * kBoxBytes;
  static constexpr int kKeptBytes = cluster_kept_bytes(kSize);
};
constexpr int kClusterTileBytes = 16 << 10;  // of either size
constexpr int kClusterTileKeys = 128;        // at most

struct ClusterPlan {
  int blocks = 0;  // of a cluster; 0: there is no place for so many heads
  int heads = 0;   // of a block, at most
  int slots = 0;
  int shared_bytes = 0;
};

// The cluster with the fewest places left over, and of these the largest; `size` is D. Never by batch or length:
// the order of sums depends on it.
inline ClusterPlan cluster_plan(int heads, int size) {
  ClusterPlan best;
  const int kept_bytes = cluster_kept_bytes(next_size(kClusterSizes, size));
  for (int blocks = heads < kClusterMaxBlocks ? heads : kClusterMaxBlocks; blocks > 0; --blocks) {
    const int each = (heads + blocks - 1) / blocks;
    const int fixed = (each - 1) * kept_bytes + kClusterRows * 8 + kClusterMaxSlots * 16;
    const int free = (kClusterSharedLimit - fixed) / (kClusterTileBytes + kClusterTileKeys);
    const int slots = free < kClusterMaxSlots ? free : kClusterMaxSlots;
    if (slots >= kClusterMinSlots && (best.blocks == 0 || each * blocks < best.heads * best.blocks)) {
      best = {blocks, each, slots, fixed + slots * (kClusterTileBytes + kClusterTileKeys)};
    }
  }
  return best;
}

// guidance: one block per row; what its threads do not hold in registers is read twice.
constexpr int kGuidanceMaxThreads = 512;
constexpr int kGuidanceHeld = 2;  // vectors of 16 bytes of each input that a thread holds

}  // namespace nag
