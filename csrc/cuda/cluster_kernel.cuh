// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Guided attention for any lengths in one launch on sm_90a. The blocks of a cluster hold the same 128 queries and take
// different heads; each keeps Z+ and Z- of its heads on the chip, as 16-bit numbers with a scale of their own (their
// rounding is an eighth of the output's), until the norms of all heads have met through the cluster's shared memory.
// Four warps fetch tiles of keys and values by the bulk copy engine into a ring of slots, twice four warps attend: the
// scores of a tile are multiplied while the values of the one before are. The softmax over the shared keys is walked
// once and its state forked over text+ and text-, both accumulators in registers.
#pragma once

#include "cluster_fetch.cuh"
#include "softmax.cuh"

namespace nag {
namespace device {

template <int kSize>
struct Attending {
  static constexpr int kTiles = ClusterTile<kSize>::kKeys / 8;
  const ClusterMemory<kSize> memory;
  RingPlace place;
  uint32_t query[kSize / 16][4];

  // The slot that comes next, when it is full.
  NAG_DEVICE int take() {
    const int slot = place.slot;
    barrier_wait(memory.full(slot), place.parity);
    sync_warp();  // what follows is for whole warps
    place.advance(memory.slots);
    return slot;
  }
  NAG_DEVICE void release(int slot) const {
    sync_warp();
    if (thread_index() % kWarp == 0) {
      barrier_arrive(memory.empty(slot));
    }
  }
  template <class T>
  NAG_DEVICE void multiply_keys(T, int slot, float (&logits)[kTiles][4]) const {
    const uint32_t tile = shared_address(memory.tile(slot));
#pragma unroll
    for (int step = 0; step < kSize / 16; ++step) {
      const uint32_t at = tile + step / 4 * ClusterTile<kSize>::kBoxBytes + step % 4 * 32;
      group_multiply<false>(T(), logits, query[step], matrix_descriptor(at, 16, 1024), step > 0);
    }
    group_commit();
  }
  template <class T>
  NAG_DEVICE void multiply_values(T, int slot, const uint32_t (&weights)[kTiles][2], float (&z)[kSize / 8][4]) const {
    const uint32_t tile = shared_address(memory.tile(slot));
#pragma unroll
    for (int step = 0; step < kTiles / 2; ++step) {
      const uint32_t pairs[4] = {weights[2 * step][0], weights[2 * step][1], weights[2 * step + 1][0],
                                 weights[2 * step + 1][1]};
      group_multiply<true>(T(), z, pairs, matrix_descriptor(tile + step * 2048, ClusterTile<kSize>::kBoxBytes, 1024),
                           true);
    }
    group_commit();
  }
};

// Scores as multiplied become logits. `seen` (null where there is no mask) also says which keys there are.
template <int kTiles>
NAG_DEVICE void scale_scores(float (&logits)[kTiles][4], float scale, float bias, int left, const uint8_t* seen) {
  const int first = thread_index() % 4 * 2;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      logits[n][i] = logits[n][i] * scale + bias;
    }
  }
  if (seen != nullptr) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        logits[n][i] = seen[first + 8 * n + i % 2] != 0 ? logits[n][i] : no_key();
      }
    }
  } else if (left < 8 * kTiles) {
    const int own = left - first;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        logits[n][i] = 8 * n + i % 2 < own ? logits[n][i] : no_key();
      }
    }
  }
}

// Whether the maximum of some row of the warp rose.
NAG_DEVICE bool is_raised(const float (&fades)[2]) { return ballot(fades[0] != 1.0f || fades[1] != 1.0f) != 0; }

// The state of this thread's two rows continued over all keys of a segment.
template <class T, int kSize>
NAG_DEVICE void attend_to_tiles(Attending<kSize>& attending, const Segment& s, bool masked, float scale,
                                SoftmaxState (&states)[2], float (&z)[kSize / 8][4]) {
  constexpr int kKeys = ClusterTile<kSize>::kKeys;
  constexpr int kTiles = kKeys / 8;
  if (s.length == 0) {
    return;
  }
  const auto seen = [&](int slot) { return masked ? attending.memory.seen(slot) : nullptr; };
  float logits[kTiles][4];
  float fades[2];
  uint32_t weights[kTiles][2];
  int slot = attending.take();
  group_fence();
  attending.multiply_keys(T(), slot, logits);
  group_wait<0>();
  scale_scores<kTiles>(logits, scale, s.bias, s.length, seen(slot));
  attending.release(slot);
  softmax_step<T, kTiles>(logits, states, fades, weights);
  if (is_raised(fades)) {
    fade(z, fades);
  }
#pragma unroll 1
  for (int start = kKeys; start < s.length; start += kKeys) {
    slot = attending.take();
    const int values = attending.take();
    group_fence();
    attending.multiply_keys(T(), slot, logits);
    attending.multiply_values(T(), values, weights, z);
    group_wait<1>();
    scale_scores<kTiles>(logits, scale, s.bias, s.length - start, seen(slot));
    attending.release(slot);
    softmax_raise_rows<kTiles>(logits, states, fades);
    // The branch stands before the wait, and a wait in each of its arms: so the exponentials are computed while the
    // values are multiplied. Where one wait stands in line, ptxas moves every exponential behind it.
    if (is_raised(fades)) {
      group_wait<0, kInOneArm>();
      fade(z, fades);
    } else {
      group_wait<0, kInTheOther>();
    }
    attending.release(values);
    softmax_pack<T, kTiles>(logits, states, weights);
  }
  slot = attending.take();
  group_fence();
  attending.multiply_values(T(), slot, weights, z);
  group_wait<0>();
  attending.release(slot);
}

// --- Z+ and Z- of a head that waits ---------------------------------------------------------------------------------

// Only the thread that keeps takes back: `place` and `scales` are its own. In float16 of [-1, 1].
template <int kSize>
NAG_DEVICE void keep_branch(char* place, float (&scales)[2], const float (&z)[kSize / 8][4]) {
  float inverse[2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float top = 0.0f;
#pragma unroll
    for (int i = 0; i < kSize / 8; ++i) {
      top = larger(top, larger(magnitude(z[i][2 * row]), magnitude(z[i][2 * row + 1])));
    }
    scales[row] = larger(top, 1e-37f);
    inverse[row] = 1.0f / scales[row];
  }
#pragma unroll
  for (int i = 0; i < kSize / 8; i += 2) {
    float words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float* const pair = &z[i + j / 2][j % 2 * 2];
      words[j] = bits_as_float(pack(Half(), pair[0] * inverse[j % 2], pair[1] * inverse[j % 2]));
    }
    shared_store(reinterpret_cast<float*>(place + i / 2 * kClusterAttending * 16), words);
  }
}

template <int kSize>
NAG_DEVICE void take_branch(const char* place, const float (&scales)[2], float (&z)[kSize / 8][4]) {
#pragma unroll
  for (int i = 0; i < kSize / 8; i += 2) {
    float words[4];
    shared_load(reinterpret_cast<const float*>(place + i / 2 * kClusterAttending * 16), words);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t pair = float_as_bits(words[j]);
      z[i + j / 2][j % 2 * 2] = low(Half(), pair) * scales[j % 2];
      z[i + j / 2][j % 2 * 2 + 1] = high(Half(), pair) * scales[j % 2];
    }
  }
}

// Four words of each of four lanes change places: lane t has word t of each.
NAG_DEVICE void transpose_words(uint32_t (&words)[4]) {
  const int t = thread_index() % 4;
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2) {
    const bool upper = (t & distance) != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int first = distance == 1 ? 2 * i : i;
      const int second = first + distance;
      const uint32_t sent = upper ? words[first] : words[second];
      const uint32_t found = float_as_bits(shuffle_xor(bits_as_float(sent), distance));
      words[first] = upper ? found : words[first];
      words[second] = upper ? words[second] : found;
    }
  }
}

// out = a Z+ - b Z- of rows `token` and `token` + 8, 16 bytes at a time.
template <class T, int kSize>
NAG_DEVICE void store_blend(const AttentionParams& p, int64_t sample, int64_t token, int head, const float (&a)[2],
                            const float (&b)[2], const float (&plus)[kSize / 8][4],
                            const float (&minus)[kSize / 8][4]) {
  const int t = thread_index() % 4;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const int64_t at = token + 8 * row;
    uint16_t* const to = static_cast<uint16_t*>(p.out) + ((sample * p.tokens + at) * p.heads + head) * p.size;
#pragma unroll
    for (int i = 0; i < kSize / 8; i += 4) {
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        words[j] = pack(T(), a[row] * plus[i + j][2 * row] - b[row] * minus[i + j][2 * row],
                        a[row] * plus[i + j][2 * row + 1] - b[row] * minus[i + j][2 * row + 1]);
      }
      transpose_words(words);
      const int channel = 8 * (i + t);
      if (at < p.tokens && channel < p.size) {
        store(to + channel, words);
      }
    }
  }
}

}  // namespace device

// One cluster = kClusterRows queries of one sample, all heads.
template <class T, int kSize>
NAG_KERNEL(kClusterFetching + kClusterAttending)
cluster_kernel(const NAG_GRID_CONSTANT ClusterParams p) {
  using namespace device;
  const AttentionParams& a = p.attention;
  const int rank = cluster_rank();
  const int64_t tiles = (a.tokens + kClusterRows - 1) / kClusterRows;
  const int64_t cluster = block_index() / p.blocks;
  const int64_t sample = cluster / tiles;
  const int heads = (a.heads - rank + p.blocks - 1) / p.blocks;  // of this block
  const ClusterMemory<kSize> memory{shared_memory(), p.slots, (a.heads + p.blocks - 1) / p.blocks - 1};
  if (thread_index() == 0) {
    for (int slot = 0; slot < p.slots; ++slot) {
      barrier_init(memory.full(slot), kClusterFetching / kWarp);
      barrier_init(memory.empty(slot), kClusterAttending / kWarp);
    }
    barriers_ready();
  }
  sync_threads();

  if (thread_index() < kClusterFetching) {
    registers_fewer<24>();
    RingPlace place;
#pragma unroll 1
    for (int i = 0; i < heads; ++i) {
      fetch_head<kSize>(p, memory, place, sample, (rank + i * p.blocks) / a.repeats);
    }
    sync_warp();
    sync_cluster();
    sync_cluster();
    return;
  }

  registers_more<240>();
  const int thread = thread_index() - kClusterFetching;
  const int row = thread / kWarp * 16 + thread % kWarp / 4;  // and the one 8 further
  const int64_t token = cluster % tiles * kClusterRows + row;
  Attending<kSize> attending{memory, {}, {}};
  float* const norms = memory.norms() + 2 * row;  // of Z+ and of the guided one, over this block's heads
  float plus[kSize / 8][4];
  float minus[kSize / 8][4];
#pragma unroll 1
  for (int i = 0; i < heads; ++i) {
    const uint16_t* const from = query_row(a, sample, token, rank + i * p.blocks);
#pragma unroll
    for (int step = 0; step < kSize / 16; ++step) {
      load_query_step(a, from, token, step, attending.query[step]);
    }
    SoftmaxState states[2][2] = {{empty_state(), empty_state()}, {empty_state(), empty_state()}};
    clear(plus);
    clear(minus);
    attend_to_tiles<T, kSize>(attending, a.segment[kShared], p.by_threads[kShared], a.scale, states[0], plus);
    if (a.rule != RowRule::kVsf) {  // the fork
      states[1][0] = states[0][0];
      states[1][1] = states[0][1];
#pragma unroll
      for (int j = 0; j < kSize / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          minus[j][c] = plus[j][c];
        }
      }
    }
    attend_to_tiles<T, kSize>(attending, a.segment[kPositive], p.by_threads[kPositive], a.scale, states[0], plus);
    attend_to_tiles<T, kSize>(attending, a.segment[kNegative], p.by_threads[kNegative], a.scale, states[1], minus);

    const float scale = settings_of(a.settings, sample).scale;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float positive = 0.0f;
      float guided = 0.0f;
      states[0][r].sum = row_sum(states[0][r].sum);
      states[1][r].sum = row_sum(states[1][r].sum);
      float weights[2];
      branch_weights(a.rule, states[0][r], states[1][r], &weights[0], &weights[1]);
#pragma unroll
      for (int j = 0; j < kSize / 8; ++j) {
#pragma unroll
        for (int c = 2 * r; c < 2 * r + 2; ++c) {
          plus[j][c] *= weights[0];
          minus[j][c] *= weights[1];
          positive += magnitude(plus[j][c]);
          guided += magnitude(scale * plus[j][c] - (scale - 1.0f) * minus[j][c]);
        }
      }
      positive = row_sum(positive);
      guided = row_sum(guided);
      if (thread % 4 == 0) {
        norms[16 * r] = i == 0 ? positive : norms[16 * r] + positive;
        norms[16 * r + 1] = i == 0 ? guided : norms[16 * r + 1] + guided;
      }
    }
    if (i + 1 < heads) {
      char* const kept = memory.kept(i) + thread * 16;
      float scales[2][2];
      keep_branch<kSize>(kept, scales[0], plus);
      keep_branch<kSize>(kept + kClusterAttending * kSize, scales[1], minus);
      const float all[4] = {scales[0][0], scales[0][1], scales[1][0], scales[1][1]};
      shared_store(reinterpret_cast<float*>(kept + 2 * kClusterAttending * kSize), all);
    }
  }

  // The norms of a row over all heads: over each block's, then over the blocks, always in the same order.
  sync_cluster();
  const SampleSettings settings = settings_of(a.settings, sample);
  float factors[2][2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float positive = 0.0f;
    float guided = 0.0f;
    for (int other = 0; other < p.blocks; ++other) {
      positive += cluster_load(norms + 16 * r, other);
      guided += cluster_load(norms + 16 * r + 1, other);
    }
    row_factors(a.rule, settings, positive, guided, &factors[0][r], &factors[1][r]);
  }
  sync_cluster();  // a block must not end while others read from it
  store_blend<T, kSize>(a, sample, token, rank + (heads - 1) * p.blocks, factors[0], factors[1], plus, minus);
#pragma unroll 1
  for (int i = 0; i + 1 < heads; ++i) {
    const char* const kept = memory.kept(i) + thread * 16;
    float all[4];
    shared_load(reinterpret_cast<const float*>(kept + 2 * kClusterAttending * kSize), all);
    take_branch<kSize>(kept, {all[0], all[1]}, plus);
    take_branch<kSize>(kept + kClusterAttending * kSize, {all[2], all[3]}, minus);
    store_blend<T, kSize>(a, sample, token, rank + i * p.blocks, factors[0], factors[1], plus, minus);
  }
}

}  // namespace nag
