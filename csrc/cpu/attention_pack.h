// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Packing for guided attention on one SIMD path: keys and values once per call, into the order in which the register
// tiles read them, widened to the accumulator's type or as bfloat16 pairs; hidden keys are left out.
#pragma once

#include "params.h"
#include "vector.h"

namespace nag {
namespace NAG_ISA {
namespace {

constexpr int kTileRows = NAG_TILE_ROWS;
constexpr int kVectors = 2;  // vectors per register tile: kTileRows x 2 accumulators fill the register file
// Keys per block: scores [96][kWidth] and Q^T [D][kWidth] stay in the first-level cache. A multiple of every
// kTileRows in use and of the pair size. Without fused multiply-add each product rounds as well; shorter sums make up
// for it.
constexpr bool kFused = NAG_FUSED;
constexpr int64_t kBlockKeys = kFused ? 96 : 24;

// Long sums are taken in runs of this many terms and then of those runs: the rounding error grows with the depth of
// the sum, not with its length.
constexpr int64_t kSumRun = 8;
// For the dot products of queries and keys; the common head sizes take one run.
constexpr int64_t kDepthRun = kFused ? 128 : 16;

// Logits are kept in base 2: the exponential then splits into integer and fraction without a rounding.
constexpr double kLog2E = 1.44269504088896340736;
constexpr int64_t kPrefetchRows = 2 * kTileRows;
// Packed elements that a register tile asks for ahead, into the second-level cache. Every tile of queries reads all
// packed keys and values again, from the third level once they outgrow the second: on Emerald Rapids (2 MiB of L2, 50
// MB packed) the tiles took 89 to 110 ms without this, by what the machine's neighbours did, and 85 to 86 with it.
constexpr int64_t kPrefetchAhead = 2048;

NAG_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

// Where the packed keys of one sample and key head begin: at this many of them, pack and width aside.
NAG_INLINE int64_t packed_row(const AttentionParams& p, const Segment& s, int64_t sample, int64_t head) {
  const int64_t first = s.packed_first[sample];
  return first * p.key_heads + head * (s.packed_first[sample + 1] - first);
}

// Packed words [c, c + kLanes) of a row of d channels, zeros beyond its end. A pair travels as the bits of a float.
template <class M, int64_t kPack, class T>
NAG_INLINE typename M::V load_words(const T* row, int64_t c, int64_t d) {
  if constexpr (kPack == 1) {
    return c + M::kLanes <= d ? load(row + c) : c < d ? load_partial<M>(row + c, d - c) : typename M::V{};
  } else {
    if (2 * (c + M::kLanes) <= d) {
      return load(reinterpret_cast<const float*>(row + 2 * c));
    }
    if (2 * c >= d) {
      return typename M::V{};
    }
#if defined(NAG_HAS_AVX512)
    return (typename M::V)_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << (d - 2 * c)) - 1), row + 2 * c);
#else
    float words[M::kLanes] = {};
    std::memcpy(words, row + 2 * c, (d - 2 * c) * sizeof(T));
    return load(words);
#endif
  }
}

// Rows of keys lie one token apart, often further than the processor looks ahead by itself.
template <class T>
NAG_INLINE void prefetch_row(const T* row, int64_t d) {
  for (int64_t c = 0; c < d; c += 64 / static_cast<int64_t>(sizeof(T))) {
    __builtin_prefetch(row + c);
  }
}

// Keys and channels as they are: float and double, and 16-bit types widened when packed.
template <class Type>
struct Plain {
  using T = Type;
  using M = typename ComputeOf<T>::type;
  using Element = typename M::Acc;
  using V = typename M::V;
  static constexpr int64_t kPack = 1;
  static NAG_INLINE V multiply_add(Element a, V b, V acc) { return fma(splat(a), b, acc); }
  static NAG_INLINE V negate(V v) { return -v; }
};

#if defined(NAG_HAS_BF16_PAIRS)
// Two bfloat16 per 32-bit element, multiplied and summed by one instruction.
struct Pairs {
  using T = BFloat16;
  using M = F32;
  using Element = uint32_t;
  using V = VecF;
  static constexpr int64_t kPack = 2;
  static NAG_INLINE V multiply_add(Element a, V b, V acc) { return dot_bf16_pairs(VecU{} + a, (VecU)b, acc); }
  static NAG_INLINE V negate(V v) { return (V)((VecU)v ^ 0x80008000u); }
};
#endif

// How many of `left` rows the next register tile takes. Never a remainder of one or two rows beside full tiles:
// too few accumulators to hide the multiply-add's latency.
NAG_INLINE int64_t next_rows(int64_t left) {
  if (left >= 2 * kTileRows || left == kTileRows) {
    return kTileRows;
  }
  return left < kTileRows ? left : (left + 1) / 2;
}

template <class P>
struct Packing {
  using M = typename P::M;
  using T = typename P::T;
  using V = typename P::V;
  using Acc = typename M::Acc;
  using Element = typename P::Element;
  static constexpr int kLanes = M::kLanes;
  static constexpr int kWidth = kVectors * kLanes;  // queries per panel
  // Panels of one work item. More of them read the packed keys less often: 32 instead of 64 tokens cost 15 % at
  // H D = 3072 on Zen 3 (AVX2, 512 KiB of L2). With 64-byte vectors one panel's Z+ and Z- fill half of a 48 KiB L1, and
  // a second panel cost 4 to 10 % on Emerald Rapids (2 MiB of L2).
  static constexpr int64_t kTilePanels = NAG_VECTOR_BYTES == 64 ? 1 : 64 / kWidth;

  static constexpr int64_t kPack = P::kPack;
  static constexpr int64_t kKeyRound = kPack;
  static constexpr int64_t kMostKeys = kBlockKeys;  // of one block

  static int64_t key_width(int64_t head_size) { return (head_size + kPack - 1) / kPack; }
  static int64_t value_width(int64_t head_size) { return head_size; }
  static NAG_INLINE V negate(V v) { return P::negate(v); }

  // Rows of packed probabilities (and values) of a block of so many keys.
  static NAG_INLINE int64_t packs(int64_t keys) { return (keys + kPack - 1) / kPack; }

  // Block length for n keys: equal blocks of whole register tiles. It depends on n alone, so a sample's bits do not
  // depend on the batch around it.
  static NAG_INLINE int64_t block_keys(int64_t n) {
    const int64_t blocks = (n + kBlockKeys - 1) / kBlockKeys;
    const int64_t even = (n + blocks - 1) / blocks;
    return (even + kTileRows - 1) / kTileRows * kTileRows;
  }

  // Keys: per register tile [key_width][rows]. Values: per block and register tile [keys / pack][rows].
  static void pack_head(const AttentionParams& p, int64_t segment_id, int64_t sample, int64_t head, void* scratch) {
    const Segment& s = p.segment[segment_id];
    const int64_t first = s.first[sample];
    const int64_t n = s.first[sample + 1] - first;
    if (n == 0) {
      return;
    }
    const int64_t* index = s.index + first;
    const int64_t d = p.head_size;
    const int64_t width = key_width(d);
    const T* key = static_cast<const T*>(s.key) + sample * s.key_stride[0] + head * s.key_stride[2];
    const T* value = static_cast<const T*>(s.value) + sample * s.value_stride[0] + head * s.value_stride[2];
    const int64_t row = packed_row(p, s, sample, head);
    Element* packed_key = static_cast<Element*>(s.packed_key) + row * width;
    Element* packed_value = static_cast<Element*>(s.packed_value) + row / kPack * d;
    const int64_t block = block_keys(n);
    for (int64_t k0 = 0; k0 < n; k0 += block) {
      const int64_t keys = min64(block, n - k0);
      for (int64_t r = 0; r < keys;) {
        const int64_t rows = next_rows(keys - r);
        for (int64_t i = r; i < r + rows; ++i) {
          prefetch_row(key + index[min64(k0 + i + kPrefetchRows, n - 1)] * s.key_stride[1], d);
        }
        pack_key_tile(key, s.key_stride[1], index + k0 + r, rows, d, packed_key + (k0 + r) * width);
        r += rows;
      }
      pack_value_block(value, s.value_stride[1], index + k0, keys, d, packed_value + k0 / kPack * d,
                       static_cast<Element*>(scratch));
    }
  }

  // rows x words -> [words][rows]. Stores go up in memory and whole vectors at a time: what one writes beyond its rows
  // the next overwrites, and the last ones are partial.
  static void pack_key_tile(const T* key, int64_t stride, const int64_t* index, int64_t rows, int64_t d,
                            Element* packed) {
    constexpr int kBlocks = (kTileRows + kLanes - 1) / kLanes;
    const int64_t width = key_width(d);
    Acc* out = reinterpret_cast<Acc*>(packed);
    for (int64_t c = 0; c < width; c += kLanes) {
      V columns[kBlocks][kLanes];
#pragma GCC unroll 4
      for (int block = 0; block < kBlocks; ++block) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          const int64_t row = block * kLanes + i;
          columns[block][i] = row < rows ? load_words<M, kPack>(key + index[row] * stride, c, d) : V{};
        }
        transpose<M>(columns[block]);
      }
      const int64_t count = min64(kLanes, width - c);
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t block = 0; block * kLanes < rows; ++block) {
          const int64_t at = (c + i) * rows + block * kLanes;
          if (at + kLanes <= width * rows) {
            store(out + at, columns[block][i]);
          } else {
            store_partial<M>(out + at, columns[block][i], min64(kLanes, rows - block * kLanes));
          }
        }
      }
    }
  }

  // keys x channels -> per register tile of channels [keys / pack][rows].
  static void pack_value_block(const T* value, int64_t stride, const int64_t* index, int64_t keys, int64_t d,
                               Element* out, Element* row) {
    const int64_t depth = packs(keys);
    for (int64_t k = 0; k < depth; ++k) {
      if constexpr (kPack == 1) {
        const T* source = value + index[k] * stride;
        prefetch_row(value + index[min64(k + kPrefetchRows, keys - 1)] * stride, d);
        for (int64_t c = 0; c < d; c += kLanes) {
          store(row + c, load_words<M, kPack>(source, c, d));
        }
      } else {
        const T* even = value + index[2 * k] * stride;
        const T* odd = value + index[min64(2 * k + 1, keys - 1)] * stride;
        const uint32_t odd_bits = 2 * k + 1 < keys ? 0xffffu : 0;
        for (int64_t c = 0; c < d; ++c) {
          row[c] = even[c].bits | (odd[c].bits & odd_bits) << 16;
        }
      }
      for (int64_t c = 0; c < d;) {
        const int64_t rows = next_rows(d - c);
        Element* tile = out + c * depth + k * rows;
        if (rows == kTileRows) {
          std::memcpy(tile, row + c, kTileRows * sizeof(Element));
        } else {
          std::memcpy(tile, row + c, rows * sizeof(Element));
        }
        c += rows;
      }
    }
  }
};

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
