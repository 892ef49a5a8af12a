// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Cross-attention to two short texts in one launch and without memory beyond the output: one block holds a tile of
// queries and all heads, so that norms and blend are done before anything is written. Warps take different heads.
#pragma once

#include "softmax.cuh"
#include "text_rows.cuh"
#include "tile_size.h"

namespace nag {
namespace device {

// z and states over one text for 16 * kTiles queries of one head.
template <class T, int kSize, int kTiles>
NAG_DEVICE void attend_to_text(const Segment& text, float scale, int64_t sample, int key_head, int size,
                               const uint32_t (&query)[kTiles][2][kQueryHeld<kSize> ? kSize / 8 : 1],
                               const QueryRows& query_rows, SoftmaxState (&states)[kTiles][2],
                               float (&z)[kTiles][kSize / 8][4]) {
  const int lane = thread_index() % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const uint16_t* key =
      static_cast<const uint16_t*>(text.key) + sample * text.key_stride[0] + key_head * text.key_stride[2];
  const uint16_t* value =
      static_cast<const uint16_t*>(text.value) + sample * text.value_stride[0] + key_head * text.value_stride[2];
  const uint8_t* const mask = mask_of(text, sample);
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    states[m][0] = states[m][1] = empty_state();
    clear(z[m]);
  }
  for (int start = 0; start < text.length; start += 16) {
    float logits[kTiles][2][4] = {};
    uint32_t seen_by_group[2];  // bit 4g: key g of these 8
    const uint16_t* keys[2];
    bool seen_keys[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int at = start + 8 * n + g;
      seen_keys[n] = key_seen(text, mask, at);
      seen_by_group[n] = ballot(seen_keys[n]);
      keys[n] = key + at * text.key_stride[1];
    }
    if constexpr (kQueryHeld<kSize>) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        uint32_t words[kSize / 8];
        load_row<kSize>(keys[n], seen_keys[n], size, t, words);
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          multiply_rows<T, kSize>(logits[m][n], query[m], words);
        }
      }
    } else {
      static_assert(kTiles == 1);
      multiply_streamed<T, kSize>(logits[0], query_rows, keys, seen_keys, size, t);
    }
    uint32_t weights[kTiles][4];
    const bool seen[4] = {(seen_by_group[0] >> (8 * t) & 1) != 0, (seen_by_group[0] >> (8 * t + 4) & 1) != 0,
                          (seen_by_group[1] >> (8 * t) & 1) != 0, (seen_by_group[1] >> (8 * t + 4) & 1) != 0};
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          logits[m][n][i] = seen[2 * n + i % 2] ? logits[m][n][i] * scale + text.bias : no_key();
        }
      }
      float fades[2];
      uint32_t pairs[2][2];
      softmax_step<T, 2>(logits[m], states[m], fades, pairs);
      weights[m][0] = pairs[0][0];
      weights[m][1] = pairs[0][1];
      weights[m][2] = pairs[1][0];
      weights[m][3] = pairs[1][1];
      fade(z[m], fades);
    }
    const uint16_t* const first = value + (start + 2 * t) * text.value_stride[1];
    const uint16_t* const rows[4] = {first, first + text.value_stride[1], first + 8 * text.value_stride[1],
                                     first + 9 * text.value_stride[1]};
#pragma unroll
    for (int b = 0; b < kSize / 64; ++b) {
      multiply_block<T, 8, kTiles, kSize>(z, 8 * b, weights, rows, seen, size, g);
    }
    if constexpr (kSize % 64 >= 32) {
      multiply_block<T, 4, kTiles, kSize>(z, kSize / 64 * 8, weights, rows, seen, size, g);
    }
    if constexpr (kSize % 32 >= 16) {
      multiply_block<T, 2, kTiles, kSize>(z, kSize / 32 * 4, weights, rows, seen, size, g);
    }
    if constexpr (kSize % 16 != 0) {
      multiply_block<T, 1, kTiles, kSize>(z, kSize / 8 - 1, weights, rows, seen, size, g);
    }
  }
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    states[m][0].sum = row_sum(states[m][0].sum);
    states[m][1].sum = row_sum(states[m][1].sum);
  }
}

// The factors of one query of the tile: its norms over all heads, added up over the warps always in the same order.
NAG_DEVICE void tile_factors(RowRule rule, const SampleSettings& settings, const float* norms, int heads, int query,
                             float* a, float* b) {
  float positive = 0.0f;
  float guided = 0.0f;
  if (rule == RowRule::kNag) {
    for (int w = 0; w < (heads < kTextWarps ? heads : kTextWarps); ++w) {
      positive += norms[(query * kTextWarps + w) * 2];
      guided += norms[(query * kTextWarps + w) * 2 + 1];
    }
  }
  row_factors(rule, settings, positive, guided, a, b);
}

}  // namespace device

// One block = 16 * kTiles queries x all heads of one sample; grid: tiles x samples in one dimension.
template <class T, int kSize, int kTiles>
NAG_KERNEL(kTextWarps* kWarp)
text_attention_kernel(const AttentionParams p) {
  using namespace device;
  constexpr int kRegisters = kSize / 8;
  constexpr int kRows = 16 * kTiles;
  constexpr int kSlot = kTextSlot<kSize, kTiles>;
  const int warp = thread_index() / kWarp;
  const int lane = thread_index() % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const int64_t tiles = (p.tokens + kRows - 1) / kRows;
  const int64_t sample = block_index() / tiles;
  const int64_t first = block_index() % tiles * kRows;
  float* const slots = reinterpret_cast<float*>(shared_memory());
  float* const norms = slots + (p.keep ? 2 * p.heads : kTextWarps) * kSlot;

  // Pass 0 finds the norms, pass 1 writes. Only NAG needs norms, and pass 1 recomputes only what was not kept.
  for (int pass = p.rule == RowRule::kNag ? 0 : 1; pass < (p.keep && p.rule == RowRule::kNag ? 1 : 2); ++pass) {
    for (int head = warp; head < p.heads; head += kTextWarps) {
      uint32_t query[kTiles][2][kQueryHeld<kSize> ? kRegisters : 1];
      QueryRows query_rows;
      const uint16_t* const from = query_row(p, sample, first, head);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const int at = 16 * m + 8 * row + g;
          if constexpr (kQueryHeld<kSize>) {
            load_row<kSize>(from + at * p.query_stride[1], first + at < p.tokens, p.size, t, query[m][row]);
          } else {
            query_rows.row[row] = from + at * p.query_stride[1];
            query_rows.seen[row] = first + at < p.tokens;
          }
        }
      }
      float* const slot_positive = slots + (p.keep ? 2 * head : warp) * kSlot + 4 * lane;
      float* const slot_negative = slot_positive + kSlot;
      SoftmaxState positive[kTiles][2];
      SoftmaxState negative[kTiles][2];
      float z[kTiles][kRegisters][4];
      const int key_head = head / p.repeats;
      attend_to_text<T, kSize, kTiles>(p.segment[kPositive], p.scale, sample, key_head, p.size, query, query_rows,
                                       positive, z);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int i = 0; i < kRegisters; ++i) {
          shared_store(slot_positive + (m * kRegisters + i) * 4 * kWarp, z[m][i]);
        }
      }
      attend_to_text<T, kSize, kTiles>(p.segment[kNegative], p.scale, sample, key_head, p.size, query, query_rows,
                                       negative, z);
      const SampleSettings settings = settings_of(p.settings, sample);  // read again: registers are short
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        float weights[2][2];
        float a[2] = {};
        float b[2] = {};
        float norm_positive[2] = {};
        float norm_guided[2] = {};
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          branch_weights(p.rule, positive[m][row], negative[m][row], &weights[row][0], &weights[row][1]);
          if (pass == 1) {
            tile_factors(p.rule, settings, norms, p.heads, 16 * m + 8 * row + g, &a[row], &b[row]);
          }
        }
#pragma unroll
        for (int i = 0; i < kRegisters; ++i) {
          float plus[4];
          shared_load(slot_positive + (m * kRegisters + i) * 4 * kWarp, plus);
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            plus[c] *= weights[c / 2][0];
            z[m][i][c] *= weights[c / 2][1];
            if (pass == 0) {
              norm_positive[c / 2] += magnitude(plus[c]);
              norm_guided[c / 2] += magnitude(settings.scale * plus[c] - (settings.scale - 1.0f) * z[m][i][c]);
            }
          }
          if (pass == 0 && p.keep) {
            shared_store(slot_positive + (m * kRegisters + i) * 4 * kWarp, plus);
            shared_store(slot_negative + (m * kRegisters + i) * 4 * kWarp, z[m][i]);
          }
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            z[m][i][c] = a[c / 2] * plus[c] - b[c / 2] * z[m][i][c];
          }
        }
        if (pass == 0) {
#pragma unroll
          for (int row = 0; row < 2; ++row) {  // the warp's sums stand in shared memory, too
            const float plus = row_sum(norm_positive[row]);
            const float guided = row_sum(norm_guided[row]);
            if (t == 0) {
              float* const to = norms + ((16 * m + 8 * row + g) * kTextWarps + warp) * 2;
              to[0] = head == warp ? plus : to[0] + plus;
              to[1] = head == warp ? guided : to[1] + guided;
            }
          }
        } else {
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            const int64_t token = first + 16 * m + 8 * row + g;
            if (token < p.tokens) {
              uint16_t* const to =
                  static_cast<uint16_t*>(p.out) + ((sample * p.tokens + token) * p.heads + head) * p.size;
              store_row<T, kSize>(to, z[m], row, p.size, t);
            }
          }
        }
      }
    }
    if (pass == 0) {
      sync_threads();
    }
  }
  if (p.keep && p.rule == RowRule::kNag) {
    const SampleSettings settings = settings_of(p.settings, sample);
    for (int head = warp; head < p.heads; head += kTextWarps) {
      const float* const from = slots + 2 * head * kSlot + 4 * lane;
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        float z[kRegisters][4];
        float a[2];
        float b[2];
        tile_factors(p.rule, settings, norms, p.heads, 16 * m + g, &a[0], &b[0]);
        tile_factors(p.rule, settings, norms, p.heads, 16 * m + 8 + g, &a[1], &b[1]);
#pragma unroll
        for (int i = 0; i < kRegisters; ++i) {
          float plus[4];
          float minus[4];
          shared_load(from + (m * kRegisters + i) * 4 * kWarp, plus);
          shared_load(from + (m * kRegisters + i) * 4 * kWarp + kSlot, minus);
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            z[i][c] = a[c / 2] * plus[c] - b[c / 2] * minus[c];
          }
        }
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const int64_t token = first + 16 * m + 8 * row + g;
          if (token < p.tokens) {
            uint16_t* const to =
                static_cast<uint16_t*>(p.out) + ((sample * p.tokens + token) * p.heads + head) * p.size;
            store_row<T, kSize>(to, z, row, p.size, t);
          }
        }
      }
    }
  }
}

}  // namespace nag
