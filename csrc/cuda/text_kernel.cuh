// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Cross-attention to two short texts in one launch and without memory beyond the output: one block holds a tile of
// queries and all heads, so that norms and blend are done before anything is written. Warps take different heads.
//
// A warp reads keys and values straight from global memory, 16 bytes a lane, in an order of its own: the contraction
// over channels may run in any order that queries and keys share, and the columns of the output in any order that the
// final store undoes. With g = lane / 4, t = lane % 4:
//   keys     a lane holds channels 8t .. 8t+7 of each 32 of row g, which feed two steps of 16 channels; then 4t .. 4t+3
//            of 16 and 2t, 2t+1 of 8 where the head size leaves them.
//   values   a lane holds channels 8g .. 8g+7 of each 64 of rows 2t, 2t+1, 2t+8, 2t+9: column g of 8 tiles, tile j
//   being
//            channel 8g + j; then 4g .. of 32, 2g .. of 16, g of 8.
#pragma once

#include "softmax.cuh"
#include "tile_size.h"

namespace nag {
namespace device {

// A row of a query or key as operand words of this lane; zeros beyond `size`, and where not `seen`.
template <int kSize>
NAG_DEVICE void load_row(const uint16_t* row, bool seen, int size, int t, uint32_t (&words)[kSize / 8]) {
  constexpr int kLong = kSize / 32;
#pragma unroll
  for (int i = 0; i < kSize / 8; ++i) {
    words[i] = 0;
  }
#pragma unroll
  for (int b = 0; b < kLong; ++b) {
    const int at = 32 * b + 8 * t;
    if (seen && at < size) {
      uint32_t x[4];
      load(row + at, x);
      words[4 * b] = x[0];
      words[4 * b + 1] = x[1];
      words[4 * b + 2] = x[2];
      words[4 * b + 3] = x[3];
    }
  }
  if constexpr (kSize % 32 >= 16) {
    const int at = 32 * kLong + 4 * t;
    if (seen && at < size) {
      uint32_t x[2];
      load(row + at, x);
      words[4 * kLong] = x[0];
      words[4 * kLong + 1] = x[1];
    }
  }
  if constexpr (kSize % 16 != 0) {
    const int at = kSize - 8 + 2 * t;
    if (seen && at < size) {
      uint32_t x[1];
      load(row + at, x);
      words[kSize / 8 - 1] = x[0];
    }
  }
}

// logits [16 queries, 8 keys] += query rows g, g + 8 times key row g
template <class T, int kSize>
NAG_DEVICE void multiply_rows(float (&logits)[4], const uint32_t (&query)[2][kSize / 8],
                              const uint32_t (&key)[kSize / 8]) {
#pragma unroll
  for (int i = 0; i + 1 < kSize / 8; i += 2) {
    multiply(T(), logits, query[0][i], query[1][i], query[0][i + 1], query[1][i + 1], key[i], key[i + 1]);
  }
  if constexpr (kSize % 16 != 0) {
    constexpr int kLast = kSize / 8 - 1;
    multiply_short(T(), logits, query[0][kLast], query[1][kLast], key[kLast]);
  }
}

// Above 128 channels the accumulator leaves no registers for the query: its rows are read again (from the first-level
// cache) with every 16 keys.
template <int kSize>
constexpr bool kQueryHeld = kSize <= 128;

struct QueryRows {
  const uint16_t* row[2];  // rows g and g + 8 of a tile
  bool seen[2];
};

// logits of two tiles of 8 keys, 32 channels at a time.
template <class T, int kSize>
NAG_DEVICE void multiply_streamed(float (&logits)[2][4], const QueryRows& query, const uint16_t* const (&keys)[2],
                                  const bool (&seen)[2], int size, int t) {
  static_assert(kSize % 32 == 0);
#pragma unroll 2
  for (int b = 0; b < kSize / 32; ++b) {
    uint32_t q[2][4] = {};
    uint32_t k[2][4] = {};
    const int at = 32 * b + 8 * t;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (query.seen[i] && at < size) {
        load(query.row[i] + at, q[i]);
      }
      if (seen[i] && at < size) {
        load(keys[i] + at, k[i]);
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      multiply(T(), logits[n], q[0][0], q[1][0], q[0][1], q[1][1], k[n][0], k[n][1]);
      multiply(T(), logits[n], q[0][2], q[1][2], q[0][3], q[1][3], k[n][2], k[n][3]);
    }
  }
}

// The values of one channel block of 8 * kWidth, kWidth of each key a lane, and its product with the weights.
template <class T, int kWidth, int kTiles, int kSize>
NAG_DEVICE void multiply_block(float (&z)[kTiles][kSize / 8][4], int first, const uint32_t (&weights)[kTiles][4],
                               const uint16_t* const (&rows)[4], const bool (&seen)[4], int size, int g) {
  constexpr int kWords = kWidth >= 2 ? kWidth / 2 : 1;
  uint32_t x[4][kWords];
  const int at = 8 * first + kWidth * g;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      x[i][w] = 0;
    }
    if (seen[i] && at < size) {
      if constexpr (kWidth == 1) {
        x[i][0] = load_two_bytes(rows[i] + at);
      } else {
        load(rows[i] + at, x[i]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const uint32_t b0 = j % 2 ? upper_halves(x[0][j / 2], x[1][j / 2]) : lower_halves(x[0][j / 2], x[1][j / 2]);
    const uint32_t b1 = j % 2 ? upper_halves(x[2][j / 2], x[3][j / 2]) : lower_halves(x[2][j / 2], x[3][j / 2]);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      multiply(T(), z[m][first + j], weights[m][0], weights[m][1], weights[m][2], weights[m][3], b0, b1);
    }
  }
}

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
  const uint8_t* mask = text.mask == nullptr ? nullptr : text.mask + sample * text.mask_stride[0];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    states[m][0] = states[m][1] = empty_state();
#pragma unroll
    for (int i = 0; i < kSize / 8; ++i) {
      z[m][i][0] = z[m][i][1] = z[m][i][2] = z[m][i][3] = 0.0f;
    }
  }
  for (int start = 0; start < text.length; start += 16) {
    float logits[kTiles][2][4] = {};
    uint32_t seen_by_group[2];  // bit 4g: key g of these 8
    const uint16_t* keys[2];
    bool key_seen[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int at = start + 8 * n + g;
      key_seen[n] = at < text.length;
      if (key_seen[n] && mask != nullptr) {
        key_seen[n] = load_byte(mask + at * text.mask_stride[1]) != 0;
      }
      seen_by_group[n] = ballot(key_seen[n]);
      keys[n] = key + at * text.key_stride[1];
    }
    if constexpr (kQueryHeld<kSize>) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        uint32_t words[kSize / 8];
        load_row<kSize>(keys[n], key_seen[n], size, t, words);
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          multiply_rows<T, kSize>(logits[m][n], query[m], words);
        }
      }
    } else {
      static_assert(kTiles == 1);
      multiply_streamed<T, kSize>(logits[0], query_rows, keys, key_seen, size, t);
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

// One channel block of a row: the lane's channels of tiles first .. first + kWidth, from both of its columns.
template <class T, int kWidth, int kSize>
NAG_DEVICE void store_block(uint16_t* row, int first, const float (&values)[kSize / 8][4], int half, int size, int t) {
#pragma unroll
  for (int column = 0; column < 2; ++column) {
    const int at = 8 * first + kWidth * (2 * t + column);
    if (at >= size) {
      continue;
    }
    if constexpr (kWidth == 1) {
      store_two_bytes(row + at, pack(T(), values[first][2 * half + column], 0.0f));
    } else {
      uint32_t words[kWidth / 2];
#pragma unroll
      for (int j = 0; j < kWidth; j += 2) {
        words[j / 2] = pack(T(), values[first + j][2 * half + column], values[first + j + 1][2 * half + column]);
      }
      store(row + at, words);
    }
  }
}

template <class T, int kSize>
NAG_DEVICE void store_row(uint16_t* row, const float (&values)[kSize / 8][4], int half, int size, int t) {
#pragma unroll
  for (int b = 0; b < kSize / 64; ++b) {
    store_block<T, 8, kSize>(row, 8 * b, values, half, size, t);
  }
  if constexpr (kSize % 64 >= 32) {
    store_block<T, 4, kSize>(row, kSize / 64 * 8, values, half, size, t);
  }
  if constexpr (kSize % 32 >= 16) {
    store_block<T, 2, kSize>(row, kSize / 32 * 4, values, half, size, t);
  }
  if constexpr (kSize % 16 != 0) {
    store_block<T, 1, kSize>(row, kSize / 8 - 1, values, half, size, t);
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
      const uint16_t* const from = static_cast<const uint16_t*>(p.query) + sample * p.query_stride[0] +
                                   first * p.query_stride[1] + head * p.query_stride[2];
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
