// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The ring of slots in the shared memory of a block of cluster_kernel.cuh, and the four warps that fill it: tiles of
// keys and values by the bulk copy engine, or by threads where there is a mask or the engine cannot read the strides.
#pragma once

#include "fragments.cuh"
#include "hopper.cuh"
#include "tile_size.h"

namespace nag {
namespace device {

template <int kSize>
struct ClusterMemory {
  char* base;  // slots, what is kept, norms, which keys are seen, barriers
  int slots;
  int kept_heads;

  NAG_DEVICE char* tile(int slot) const { return base + slot * kClusterTileBytes; }
  NAG_DEVICE char* kept(int head) const {
    return base + slots * kClusterTileBytes + head * ClusterTile<kSize>::kKeptBytes;
  }
  NAG_DEVICE float* norms() const { return reinterpret_cast<float*>(kept(kept_heads)); }
  NAG_DEVICE uint64_t* full(int slot) const { return reinterpret_cast<uint64_t*>(norms() + 2 * kClusterRows) + slot; }
  NAG_DEVICE uint64_t* empty(int slot) const { return full(kClusterMaxSlots) + slot; }
  NAG_DEVICE uint8_t* seen(int slot) const {
    return reinterpret_cast<uint8_t*>(empty(kClusterMaxSlots)) + slot * kClusterTileKeys;
  }
};

// A place in the ring of slots, the same for who fills and who reads.
struct RingPlace {
  int slot = 0;
  int parity = 0;

  NAG_DEVICE void advance(int slots) {
    if (++slot == slots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// The keys (or values) from `start` on into the next slot.
template <int kSize>
NAG_DEVICE void fetch_tile(const ClusterParams& p, const ClusterMemory<kSize>& memory, RingPlace& place, int which,
                           bool value, int start, int64_t sample, int key_head) {
  using Tile = ClusterTile<kSize>;
  const Segment& s = p.attention.segment[which];
  const int64_t* const stride = value ? s.value_stride : s.key_stride;
  char* const tile = memory.tile(place.slot);
  uint64_t* const full = memory.full(place.slot);
  const int lane = thread_index() % kWarp;
  barrier_wait(memory.empty(place.slot), place.parity ^ 1);
  if (!p.by_threads[which]) {
    if (thread_index() == 0) {
      const TensorMap& map = value ? p.value[which] : p.key[which];
      barrier_arrive_expecting(full, Tile::kBytes);
#pragma unroll
      for (int box = 0; box < kSize / 64; ++box) {
        copy_tile(map, tile + box * Tile::kBoxBytes, full, 64 * box, start, stride[2] == 0 ? 0 : key_head,
                  stride[0] == 0 ? 0 : static_cast<int>(sample));
      }
    } else if (lane == 0) {
      barrier_arrive(full);
    }
  } else {
    const uint16_t* const from =
        static_cast<const uint16_t*>(value ? s.value : s.key) + sample * stride[0] + key_head * stride[2];
    const uint8_t* const mask = mask_of(s, sample);
#pragma unroll 1
    for (int i = thread_index(); i < Tile::kKeys * kSize / 8; i += kClusterFetching) {
      const int row = i / (kSize / 8);
      const int unit = i % (kSize / 8);
      const int64_t at = start + row;
      const bool seen = key_seen(s, mask, at);
      if (unit == 0 && !value) {
        shared_store_byte(memory.seen(place.slot) + row, seen ? 1 : 0);
      }
      const bool valid = seen && unit * 8 < p.attention.size;
      copy_into_tile(tile + unit / 8 * Tile::kBoxBytes + row * 128 + ((unit ^ row) & 7) * 16,
                     valid ? from + at * stride[1] + unit * 8 : from, valid);
    }
    copies_commit();
    copies_wait<0>();
    fence_for_async();
    sync_warp();
    if (lane == 0) {
      barrier_arrive(full);
    }
  }
  place.advance(memory.slots);
}

// All tiles of one head in the order in which they are read: the scores are one tile ahead of the values.
template <int kSize>
NAG_DEVICE void fetch_head(const ClusterParams& p, const ClusterMemory<kSize>& memory, RingPlace& place, int64_t sample,
                           int key_head) {
  constexpr int kKeys = ClusterTile<kSize>::kKeys;
#pragma unroll 1
  for (int which = 0; which < kNumSegments; ++which) {
    const int tiles = (p.attention.segment[which].length + kKeys - 1) / kKeys;
#pragma unroll 1
    for (int i = 0; i < tiles + (tiles > 0); ++i) {
      if (i < tiles) {
        fetch_tile<kSize>(p, memory, place, which, false, i * kKeys, sample, key_head);
      }
      if (i > 0) {
        fetch_tile<kSize>(p, memory, place, which, true, (i - 1) * kKeys, sample, key_head);
      }
    }
  }
}

}  // namespace device
}  // namespace nag
