// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Rows of queries, keys, values and output for text_kernel.cuh, between global memory and the fragments of a warp.
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

#include "fragments.cuh"

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

}  // namespace device
}  // namespace nag
