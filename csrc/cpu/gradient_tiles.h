// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The product of the gradient that sums over the queries of a panel, in tiles of keys x channels, and its operands.
#pragma once

#include "attention_pack.h"

namespace nag {
namespace NAG_ISA {
namespace {

template <class M>
struct GradientTiles {
  using V = typename M::V;
  using Acc = typename M::Acc;
  static constexpr int kLanes = M::kLanes;
  static constexpr int kWidth = kVectors * kLanes;

  static int64_t columns(int64_t d) { return (d + kLanes - 1) / kLanes * kLanes; }

  // out[rows][columns] += sum over the queries of a[rows][kWidth] x b[kWidth][columns], kVecs vectors of it.
  template <int kRows, int kVecs>
  static __attribute__((noinline)) void outer_tile(const Acc* a, const Acc* b, int64_t width, Acc* out) {
    V acc[kRows][kVecs] = {};
#pragma GCC unroll 4
    for (int64_t q = 0; q < kWidth; ++q) {
      V panel[kVecs];
#pragma GCC unroll 2
      for (int j = 0; j < kVecs; ++j) {
        panel[j] = load(b + q * width + j * kLanes);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
        for (int j = 0; j < kVecs; ++j) {
          acc[i][j] = fma(splat(a[i * kWidth + q]), panel[j], acc[i][j]);
        }
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < kVecs; ++j) {
        Acc* at = out + i * width + j * kLanes;
        store(at, load(at) + acc[i][j]);
      }
    }
  }

  template <int kRows = kTileRows>
  static NAG_INLINE void outer_rows(int64_t rows, const Acc* a, const Acc* b, int64_t width, Acc* out) {
    if constexpr (kRows > 1) {
      if (rows != kRows) {
        return outer_rows<kRows - 1>(rows, a, b, width, out);
      }
    }
    int64_t c = 0;
    for (; c + 2 * kLanes <= width; c += 2 * kLanes) {
      outer_tile<kRows, 2>(a, b + c, width, out + c);
    }
    if (c < width) {
      outer_tile<kRows, 1>(a, b + c, width, out + c);
    }
  }

  static void outer(const Acc* a, const Acc* b, int64_t keys, int64_t width, Acc* out) {
    for (int64_t r = 0; r < keys;) {
      const int64_t rows = next_rows(keys - r);
      outer_rows(rows, a + r * kWidth, b, width, out + r * width);
      r += rows;
    }
  }

  // [kWidth][columns] from [D][kWidth].
  static void to_rows(const Acc* from, int64_t d, Acc* to) {
    const int64_t width = columns(d);
    for (int j = 0; j < kVectors; ++j) {
      for (int64_t c = 0; c < d; c += kLanes) {
        V rows[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          rows[i] = c + i < d ? load(from + (c + i) * kWidth + j * kLanes) : V{};
        }
        transpose<M>(rows);
        for (int i = 0; i < kLanes; ++i) {
          store(to + (j * kLanes + i) * width + c, rows[i]);
        }
      }
    }
  }
};

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
