// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Z+ and Z- of one tile of queries of one head, for any lengths: the softmax over the shared keys is walked once and
// its state (maximum, sum, accumulator) forked over text+ and text-. Keys and values pass through shared memory in two
// stages of asynchronous copies. guidance_kernel.cuh blends what this writes.
#pragma once

#include "fragments.cuh"
#include "softmax.cuh"
#include "tile_size.h"

namespace nag {
namespace device {

// The block's shared memory: fragments of the query (large heads), two stages of keys and values, which keys are seen.
template <int kSize>
struct BranchMemory {
  using Tile = BranchTile<kSize>;
  char* base;

  NAG_DEVICE char* query(int step) const {  // of this lane: one step of 16 channels
    return base + ((thread_index() / kWarp * (kSize / 16) + step) * kWarp + thread_index() % kWarp) * 16;
  }
  NAG_DEVICE char* keys(int stage) const { return base + Tile::kQueryBytes + stage * Tile::kStageBytes; }
  NAG_DEVICE char* values(int stage) const { return keys(stage) + Tile::kStageBytes / 2; }
  NAG_DEVICE uint8_t* seen(int stage) const {
    return reinterpret_cast<uint8_t*>(base + Tile::kQueryBytes + 2 * Tile::kStageBytes) + stage * Tile::kKeys;
  }
};

// Where the keys of one segment begin for this block's sample and head.
struct SegmentRows {
  const uint16_t* key;
  const uint16_t* value;
  const uint8_t* mask;
};

NAG_DEVICE SegmentRows segment_rows(const Segment& s, int64_t sample, int key_head) {
  return {static_cast<const uint16_t*>(s.key) + sample * s.key_stride[0] + key_head * s.key_stride[2],
          static_cast<const uint16_t*>(s.value) + sample * s.value_stride[0] + key_head * s.value_stride[2],
          mask_of(s, sample)};
}

// Starts the copies of kKeys keys and values from `start` on; what is not seen, or beyond the head size, is zero.
template <int kSize>
NAG_DEVICE void start_copies(const BranchMemory<kSize>& memory, const Segment& s, const SegmentRows& rows, int start,
                             int stage, int size) {
  using Tile = BranchTile<kSize>;
  constexpr int kChunks = kSize / 8;
#pragma unroll(Tile::kQueryInRegisters ? 4 : 1)
  for (int i = thread_index(); i < Tile::kKeys * kChunks; i += Tile::kWarps * kWarp) {
    const int row = i / kChunks;
    const int channel = i % kChunks * 8;
    const int64_t at = start + row;
    const bool seen = key_seen(s, rows.mask, at);
    if (channel == 0) {
      memory.seen(stage)[row] = seen ? 1 : 0;
    }
    const bool valid = seen && channel < size;
    const int to = row * Tile::kRowBytes + channel * 2;
    copy_async(memory.keys(stage) + to, valid ? rows.key + at * s.key_stride[1] + channel : rows.key, valid);
    copy_async(memory.values(stage) + to, valid ? rows.value + at * s.value_stride[1] + channel : rows.value, valid);
  }
  copies_commit();
}

// The state of 16 queries of this warp continued over one stage of keys.
template <class T, int kSize>
NAG_DEVICE void attend_to_stage(const BranchMemory<kSize>& memory, int stage, int left, float scale, float bias,
                                const uint32_t (&query)[BranchTile<kSize>::kQueryInRegisters ? kSize / 16 : 1][4],
                                SoftmaxState (&states)[2], float (&z)[kSize / 8][4]) {
  using Tile = BranchTile<kSize>;
  constexpr int kTiles = Tile::kKeys / 8;
  const int lane = thread_index() % kWarp;
  const int t = lane % 4;
  float logits[kTiles][4] = {};
  // Matrices of 8 keys x 8 channels: 0 and 1 are channels 0 to 15 of keys 0 to 7, 2 and 3 of keys 8 to 15.
  const char* const keys = memory.keys(stage) + (lane / 16 * 8 + lane % 8) * Tile::kRowBytes + lane / 8 % 2 * 16;
  // With the query in shared memory a full unroll would take more registers than there are.
#pragma unroll(Tile::kQueryInRegisters ? kSize / 16 : 2)
  for (int step = 0; step < kSize / 16; ++step) {
    uint32_t q[4];
    if constexpr (Tile::kQueryInRegisters) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        q[i] = query[step][i];
      }
    } else {
      float words[4];
      shared_load(reinterpret_cast<const float*>(memory.query(step)), words);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        q[i] = float_as_bits(words[i]);
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      if (8 * n < left) {
        uint32_t k[4];
        load_matrices(keys + n * 8 * Tile::kRowBytes + step * 32, k);
        multiply(T(), logits[n], q[0], q[1], q[2], q[3], k[0], k[1]);
        multiply(T(), logits[n + 1], q[0], q[1], q[2], q[3], k[2], k[3]);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool seen = memory.seen(stage)[8 * n + 2 * t + i % 2] != 0;
      logits[n][i] = seen ? logits[n][i] * scale + bias : no_key();
    }
  }
  float fades[2];
  uint32_t weights[kTiles][2];
  softmax_step<T, kTiles>(logits, states, fades, weights);
  fade(z, fades);
  // Transposed matrices: 0 and 1 are keys 0 to 7 and 8 to 15 of channels 0 to 7, 2 and 3 of channels 8 to 15.
  const char* const values = memory.values(stage) + (lane / 8 % 2 * 8 + lane % 8) * Tile::kRowBytes + lane / 16 * 16;
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
    if (8 * n < left) {
#pragma unroll
      for (int i = 0; i < kSize / 8; i += 2) {
        uint32_t v[4];
        load_matrices_transposed(values + n * 8 * Tile::kRowBytes + i * 16, v);
        multiply(T(), z[i], weights[n][0], weights[n][1], weights[n + 1][0], weights[n + 1][1], v[0], v[1]);
        multiply(T(), z[i + 1], weights[n][0], weights[n][1], weights[n + 1][0], weights[n + 1][1], v[2], v[3]);
      }
    }
  }
}

// The state continued over all keys of a segment.
template <class T, int kSize>
NAG_DEVICE void attend_to_segment(const BranchMemory<kSize>& memory, const Segment& s, int64_t sample, int key_head,
                                  float scale, int size,
                                  const uint32_t (&query)[BranchTile<kSize>::kQueryInRegisters ? kSize / 16 : 1][4],
                                  SoftmaxState (&states)[2], float (&z)[kSize / 8][4]) {
  constexpr int kKeys = BranchTile<kSize>::kKeys;
  if (s.length == 0) {
    return;
  }
  const SegmentRows rows = segment_rows(s, sample, key_head);
  start_copies<kSize>(memory, s, rows, 0, 0, size);
  int stage = 0;
  for (int start = 0; start < s.length; start += kKeys) {
    if (start + kKeys < s.length) {
      start_copies<kSize>(memory, s, rows, start + kKeys, stage ^ 1, size);
      copies_wait<1>();
    } else {
      copies_wait<0>();
    }
    sync_threads();
    attend_to_stage<T, kSize>(memory, stage, s.length - start, scale, s.bias, query, states, z);
    sync_threads();
    stage ^= 1;
  }
}

// This lane's part of row `token` (then token + 8) of Z+ or Z-, null beyond the last.
NAG_DEVICE float* branch_row(const AttentionParams& p, float* branch, int64_t sample, int64_t token, int head) {
  return token < p.tokens ? branch + ((sample * p.tokens + token) * p.heads + head) * p.size + thread_index() % 4 * 2
                          : nullptr;
}

template <int kSize>
NAG_DEVICE void store_branch(const AttentionParams& p, float* branch, int64_t sample, int64_t token, int head,
                             const float (&z)[kSize / 8][4], float weight0, float weight1) {
  const float weights[2] = {weight0, weight1};
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float* const to = branch_row(p, branch, sample, token + 8 * row, head);
#pragma unroll
    for (int i = 0; i < kSize / 8; ++i) {
      if (to != nullptr && 8 * i < p.size) {
        store_float2(to + 8 * i, z[i][2 * row] * weights[row], z[i][2 * row + 1] * weights[row]);
      }
    }
  }
}

template <int kSize>
NAG_DEVICE void load_branch(const AttentionParams& p, float* branch, int64_t sample, int64_t token, int head,
                            float (&z)[kSize / 8][4]) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const float* const from = branch_row(p, branch, sample, token + 8 * row, head);
#pragma unroll
    for (int i = 0; i < kSize / 8; ++i) {
      float x[2] = {};
      if (from != nullptr && 8 * i < p.size) {
        load_own(from + 8 * i, x);
      }
      z[i][2 * row] = x[0];
      z[i][2 * row + 1] = x[1];
    }
  }
}

NAG_DEVICE SoftmaxState over_lanes(SoftmaxState state) {
  state.sum = row_sum(state.sum);
  return state;
}

}  // namespace device

// One block = kRows queries of one head of one sample; grid: tiles x heads x samples in one dimension.
template <class T, int kSize>
NAG_KERNEL(BranchTile<kSize>::kWarps* kWarp)
branches_kernel(const AttentionParams p) {
  using namespace device;
  using Tile = BranchTile<kSize>;
  const BranchMemory<kSize> memory{shared_memory()};
  const int lane = thread_index() % kWarp;
  const int g = lane / 4;
  const int64_t tiles = (p.tokens + Tile::kRows - 1) / Tile::kRows;
  const int head = static_cast<int>(block_index() / tiles % p.heads);
  const int64_t sample = block_index() / tiles / p.heads;
  const int64_t token = block_index() % tiles * Tile::kRows + thread_index() / kWarp * 16 + g;
  const int key_head = head / p.repeats;

  uint32_t query[Tile::kQueryInRegisters ? kSize / 16 : 1][4];
  const uint16_t* const from = query_row(p, sample, token, head);
#pragma unroll
  for (int step = 0; step < kSize / 16; ++step) {
    if constexpr (Tile::kQueryInRegisters) {
      load_query_step(p, from, token, step, query[step]);
    } else {
      uint32_t q[4];
      load_query_step(p, from, token, step, q);
      const float words[4] = {bits_as_float(q[0]), bits_as_float(q[1]), bits_as_float(q[2]), bits_as_float(q[3])};
      shared_store(reinterpret_cast<float*>(memory.query(step)), words);  // read by this lane alone
    }
  }

  SoftmaxState states[2] = {empty_state(), empty_state()};
  float z[kSize / 8][4];
  clear(z);
  attend_to_segment<T, kSize>(memory, p.segment[kShared], sample, key_head, p.scale, p.size, query, states, z);

  // The fork: text+ goes on in the registers, text- takes up what lies in the place of Z- until then.
  const bool forked = p.segment[kShared].length > 0 && p.rule != RowRule::kVsf;
  SoftmaxState fork[2] = {empty_state(), empty_state()};
  if (forked) {
    fork[0] = states[0];
    fork[1] = states[1];
    store_branch<kSize>(p, p.negative, sample, token, head, z, 1.0f, 1.0f);
  }
  attend_to_segment<T, kSize>(memory, p.segment[kPositive], sample, key_head, p.scale, p.size, query, states, z);
  const SoftmaxState plus[2] = {over_lanes(states[0]), over_lanes(states[1])};
  if (p.rule == RowRule::kVsf) {  // its weight is known after text-
    store_branch<kSize>(p, p.positive, sample, token, head, z, 1.0f, 1.0f);
  } else {
    store_branch<kSize>(p, p.positive, sample, token, head, z, softmax_weight(plus[0]), softmax_weight(plus[1]));
  }
  states[0] = fork[0];
  states[1] = fork[1];
  if (forked) {
    load_branch<kSize>(p, p.negative, sample, token, head, z);
  } else {
    clear(z);
  }
  attend_to_segment<T, kSize>(memory, p.segment[kNegative], sample, key_head, p.scale, p.size, query, states, z);
  const SoftmaxState minus[2] = {over_lanes(states[0]), over_lanes(states[1])};
  float weights[2][2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    branch_weights(p.rule, plus[row], minus[row], &weights[row][0], &weights[row][1]);
  }
  store_branch<kSize>(p, p.negative, sample, token, head, z, weights[0][1], weights[1][1]);
  if (p.rule == RowRule::kVsf) {
    load_branch<kSize>(p, p.positive, sample, token, head, z);
    store_branch<kSize>(p, p.positive, sample, token, head, z, weights[0][0], weights[1][0]);
  }
}

}  // namespace nag
