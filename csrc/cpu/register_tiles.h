// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The two matrix products of guided attention in vector registers: K Q^T and V^T P, in tiles of up to NAG_TILE_ROWS
// keys (channels) x kWidth queries.
#pragma once

#include "attention_pack.h"

namespace nag {
namespace NAG_ISA {
namespace {

template <class P>
struct RegisterTiles : Packing<P> {
  using Base = Packing<P>;
  using Base::kLanes;
  using Base::kWidth;
  using Base::packs;
  using typename Base::Acc;
  using typename Base::Element;
  using typename Base::V;

  struct Session {};  // nothing to set up

  // acc[rows][kWidth] += a[depth][rows] x b[depth][kWidth]
  template <int kRows>
  static NAG_INLINE void multiply(const Element* a, const Element* b, int64_t depth, V (&acc)[kRows][kVectors]) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < depth; ++k) {
      V panel[kVectors];
      __builtin_prefetch(a + k * kRows + kPrefetchAhead, 0, 2);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        panel[j] = load(reinterpret_cast<const Acc*>(b) + k * kWidth + j * kLanes);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) {
          acc[i][j] = P::multiply_add(a[k * kRows + i], panel[j], acc[i][j]);
        }
      }
    }
  }

  // scores[rows][kWidth] = K Q^T, and the running maximum over the rows. kDeep: heads wider than kDepthRun, whose
  // partial sums cost the others 4 % in the same function.
  template <int kRows, bool kDeep>
  static __attribute__((noinline)) void score_tile(const Element* key, const Element* query, int64_t width, Acc* scores,
                                                   Acc* maximum) {
    V acc[kRows][kVectors] = {};
    multiply<kRows>(key, query, kDeep ? kDepthRun : width, acc);
    if constexpr (kDeep) {
      for (int64_t k = kDepthRun; k < width; k += kDepthRun) {
        V more[kRows][kVectors] = {};
        multiply<kRows>(key + k * kRows, query + k * kWidth, min64(width - k, kDepthRun), more);
        for (int i = 0; i < kRows; ++i) {
          for (int j = 0; j < kVectors; ++j) {
            acc[i][j] += more[i][j];
          }
        }
      }
    }
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      V largest = load(maximum + j * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        store(scores + i * kWidth + j * kLanes, acc[i][j]);
        largest = max(acc[i][j], largest);
      }
      store(maximum + j * kLanes, largest);
    }
  }

  // out[rows][kWidth] = rescale out + V^T P; `rescale` is null for the first block, whose old content is not read. The
  // block is summed by itself and then added: one long chain over all keys would round several times as much.
  template <int kRows>
  static __attribute__((noinline)) void value_tile(const Element* value, const Element* probability, int64_t packs,
                                                   const Acc* rescale, Acc* out) {
    V acc[kRows][kVectors] = {};
    multiply<kRows>(value, probability, packs, acc);
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      if (rescale != nullptr) {
        const V factor = load(rescale + j * kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) {
          acc[i][j] = fma(load(out + i * kWidth + j * kLanes), factor, acc[i][j]);
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        store(out + i * kWidth + j * kLanes, acc[i][j]);
      }
    }
  }

  template <int kRows = kTileRows>
  static NAG_INLINE void score_rows(int64_t rows, const Element* key, const Element* query, int64_t width, Acc* scores,
                                    Acc* maximum) {
    if constexpr (kRows > 1) {
      if (rows != kRows) {
        return score_rows<kRows - 1>(rows, key, query, width, scores, maximum);
      }
    }
    if (width > kDepthRun) {
      score_tile<kRows, true>(key, query, width, scores, maximum);
    } else {
      score_tile<kRows, false>(key, query, width, scores, maximum);
    }
  }

  template <int kRows = kTileRows>
  static NAG_INLINE void value_rows(int64_t rows, const Element* value, const Element* probability, int64_t packs,
                                    const Acc* rescale, Acc* out) {
    if constexpr (kRows > 1) {
      if (rows != kRows) {
        return value_rows<kRows - 1>(rows, value, probability, packs, rescale, out);
      }
    }
    value_tile<kRows>(value, probability, packs, rescale, out);
  }

  // scores[keys][kWidth] of one block, and their maximum for each query (never below what `maximum` holds).
  static void scores(const Element* key, const Element* query, int64_t width, int64_t keys, Acc* scores, Acc* maximum) {
    for (int64_t r = 0; r < keys;) {
      const int64_t rows = next_rows(keys - r);
      score_rows(rows, key + r * width, query, width, scores + r * kWidth, maximum);
      r += rows;
    }
  }

  // acc[d][kWidth] = rescale acc + V^T P of one block.
  static void values(const Element* value, const Element* probability, int64_t keys, int64_t d, const Acc* rescale,
                     Acc* acc) {
    const int64_t depth = packs(keys);
    for (int64_t c = 0; c < d;) {
      const int64_t rows = next_rows(d - c);
      value_rows(rows, value + c * depth, probability, depth, rescale, acc + c * kWidth);
      c += rows;
    }
  }
};

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
