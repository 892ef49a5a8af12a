// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The two matrix products of guided attention in matrix registers (AMX), which multiply bfloat16 and sum in float32: a
// tile of A holds 16 keys (channels) x 32 channels (keys), a tile of B 16 pairs of channels (keys) x 16 queries, their
// product 16 x 16 float32. Packing makes every tile of A 1024 contiguous bytes, with zeros beyond the last key and
// channel.
//
// Only bfloat16 takes this path. float32 as the sum of three bfloat16, six products for one, was tried on an Intel
// Xeon with AVX10.1: 1.1 times as fast as the vector units on Wan's layer, 0.9 and 0.8 times on FLUX.1's and SD3.5's.
#pragma once

#include "attention_pack.h"

namespace nag {
namespace NAG_ISA {
namespace {

constexpr int64_t kTile = 16;  // rows, and 32-bit words of a row
constexpr int64_t kTileWords = kTile * kTile;
constexpr int64_t kPanelBytes = 2 * kTile * 4;  // from one row of a panel of queries to the next

#if defined(NAG_HAS_AMX)
// Not the compilers' intrinsics: GCC's loads do not say that they read memory, so stores may move behind them.
#  define NAG_TILE_ZERO(t) asm volatile("tilezero %%tmm" #t::)
#  define NAG_TILE_LOAD(t, from, stride) \
    asm volatile("tileloadd (%0,%1,1), %%tmm" #t::"r"(from), "r"(int64_t(stride)) : "memory")
#  define NAG_TILE_STORE(t, to, stride) \
    asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"(int64_t(stride)) : "memory")
#  define NAG_TILE_DOT(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c::)

struct TileSession {
  struct alignas(64) Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };

  TileSession() {
    asm volatile("sttilecfg %0" : "=m"(before));
    Configuration all = {};
    all.palette = 1;
    for (int t = 0; t < 8; ++t) {
      all.row_bytes[t] = 4 * kTile;
      all.rows[t] = kTile;
    }
    asm volatile("ldtilecfg %0" ::"m"(all));
    constexpr unsigned kFlushToZero = 0x8000;  // as the tiles do
    _mm_setcsr(status | kFlushToZero);
  }
  // What others set up in this thread (a library that caches its own set-up, say) is there again.
  ~TileSession() {
    asm volatile("ldtilecfg %0" ::"m"(before));
    _mm_setcsr(status);
  }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;

  Configuration before;
  unsigned status = _mm_getcsr();
};
#else  // the same in memory, for builds that try the tiles on other machines
thread_local uint32_t tile_memory[8][kTileWords];

inline void copy_tile(void* to, int64_t to_stride, const void* from, int64_t from_stride) {
  for (int64_t row = 0; row < kTile; ++row) {
    std::memcpy(static_cast<char*>(to) + row * to_stride, static_cast<const char*>(from) + row * from_stride,
                4 * kTile);
  }
}

inline float bfloat16_value(uint32_t bits) {
  bits <<= 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void dot_tiles(uint32_t* c, const uint32_t* a, const uint32_t* b) {
  for (int64_t m = 0; m < kTile; ++m) {
    float sums[kTile];
    std::memcpy(sums, c + m * kTile, sizeof sums);
    for (int64_t k = 0; k < kTile; ++k) {
      const uint32_t left = a[m * kTile + k];
      for (int64_t n = 0; n < kTile; ++n) {
        const uint32_t right = b[k * kTile + n];
        sums[n] += bfloat16_value(left & 0xffffu) * bfloat16_value(right & 0xffffu);
        sums[n] += bfloat16_value(left >> 16) * bfloat16_value(right >> 16);
      }
    }
    std::memcpy(c + m * kTile, sums, sizeof sums);
  }
}

#  define NAG_TILE_ZERO(t) std::memset(tile_memory[t], 0, sizeof tile_memory[t])
#  define NAG_TILE_LOAD(t, from, stride) copy_tile(tile_memory[t], 4 * kTile, from, stride)
#  define NAG_TILE_STORE(t, to, stride) copy_tile(to, stride, tile_memory[t], 4 * kTile)
#  define NAG_TILE_DOT(c, a, b) dot_tiles(tile_memory[c], tile_memory[a], tile_memory[b])

struct TileSession {
  TileSession() {}
};
#endif

struct MatrixTiles {
  using T = BFloat16;
  using M = F32;
  using V = VecF;
  using Acc = float;
  using Element = uint32_t;  // two bfloat16
  using Session = TileSession;
  static constexpr int kLanes = M::kLanes;
  static constexpr int kWidth = kVectors * kLanes;
  static_assert(kLanes == kTile && kWidth == 2 * kTile, "two tiles of queries to a panel");
  static constexpr int64_t kPack = 2;
  static constexpr int64_t kKeyRound = 2 * kTile;  // both a depth of the second product and two tiles of the first
  static constexpr int64_t kMostKeys = 256;        // 128 to 256 cost the same (Xeon with AVX10.1), 512 more
  static constexpr int64_t kTilePanels = 2;        // 1 to 8 cost the same there

  static NAG_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
  static int64_t key_width(int64_t head_size) { return round_up(head_size, 2 * kTile) / 2; }
  static int64_t value_width(int64_t head_size) { return round_up(head_size, kTile); }
  static NAG_INLINE int64_t packs(int64_t keys) { return round_up(keys, kKeyRound) / 2; }
  static NAG_INLINE V negate(V v) { return (V)((VecU)v ^ 0x80008000u); }

  static NAG_INLINE int64_t block_keys(int64_t n) {
    const int64_t blocks = (n + kMostKeys - 1) / kMostKeys;
    return round_up((n + blocks - 1) / blocks, kKeyRound);
  }

  // ---- products ------------------------------------------------------------------------------------------------

  // c[16 kRowTiles][kWidth] = a x b, plus what c holds if `add`. a: tiles [kRowTiles][depth]; b: [16 depth][kWidth].
  template <int kRowTiles>
  static NAG_INLINE void multiply(const Element* a, const Element* b, int64_t depth, float* c, bool add) {
    float* lower = c + kTile * kWidth;
    if (add) {
      NAG_TILE_LOAD(0, c, kPanelBytes);
      NAG_TILE_LOAD(1, c + kTile, kPanelBytes);
      if constexpr (kRowTiles == 2) {
        NAG_TILE_LOAD(2, lower, kPanelBytes);
        NAG_TILE_LOAD(3, lower + kTile, kPanelBytes);
      }
    } else {
      NAG_TILE_ZERO(0);
      NAG_TILE_ZERO(1);
      if constexpr (kRowTiles == 2) {
        NAG_TILE_ZERO(2);
        NAG_TILE_ZERO(3);
      }
    }
    for (int64_t k = 0; k < depth; ++k, a += kTileWords, b += kTile * kWidth) {
      NAG_TILE_LOAD(4, a, 4 * kTile);
      NAG_TILE_LOAD(6, b, kPanelBytes);
      NAG_TILE_LOAD(7, b + kTile, kPanelBytes);
      NAG_TILE_DOT(0, 4, 6);
      NAG_TILE_DOT(1, 4, 7);
      if constexpr (kRowTiles == 2) {
        NAG_TILE_LOAD(5, a + depth * kTileWords, 4 * kTile);
        NAG_TILE_DOT(2, 5, 6);
        NAG_TILE_DOT(3, 5, 7);
      }
    }
    NAG_TILE_STORE(0, c, kPanelBytes);
    NAG_TILE_STORE(1, c + kTile, kPanelBytes);
    if constexpr (kRowTiles == 2) {
      NAG_TILE_STORE(2, lower, kPanelBytes);
      NAG_TILE_STORE(3, lower + kTile, kPanelBytes);
    }
  }

  // scores[keys][kWidth] of one block, and their maximum for each query (never below what `maximum` holds).
  static void scores(const Element* key, const Element* query, int64_t width, int64_t keys, float* scores,
                     float* maximum) {
    for (int64_t k = 0; k < keys; k += 2 * kTile) {
      multiply<2>(key + k * width, query, width / kTile, scores + k * kWidth, false);
    }
    V largest[2][kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      largest[0][j] = largest[1][j] = load(maximum + j * kLanes);
    }
    int64_t k = 0;
    for (; k + 1 < keys; k += 2) {
#pragma GCC unroll 4
      for (int i = 0; i < 2 * kVectors; ++i) {
        V& so_far = largest[i / kVectors][i % kVectors];
        so_far = max(load(scores + k * kWidth + i * kLanes), so_far);
      }
    }
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      const V top = max(largest[1][j], largest[0][j]);
      store(maximum + j * kLanes, k < keys ? max(load(scores + k * kWidth + j * kLanes), top) : top);
    }
  }

  // acc[d][kWidth] = rescale acc + V^T P of one block; `rescale` is null for the first, before which acc holds nothing.
  static void values(const Element* value, const Element* probability, int64_t keys, int64_t d, const float* rescale,
                     float* acc) {
    const bool add = rescale != nullptr;
    if (add) {
      scale_rows(rescale, d, acc);
    }
    const int64_t depth = packs(keys) / kTile;
    int64_t c = 0;
    for (; c + 2 * kTile <= d; c += 2 * kTile, value += 2 * depth * kTileWords) {
      multiply<2>(value, probability, depth, acc + c * kWidth, add);
    }
    for (; c + kTile <= d; c += kTile, value += depth * kTileWords) {
      multiply<1>(value, probability, depth, acc + c * kWidth, add);
    }
    if (c < d) {  // less than a tile: not into the rows of the next head
      alignas(64) float last[kTile * kWidth] = {};
      const size_t bytes = (d - c) * kWidth * sizeof(float);
      if (add) {
        std::memcpy(last, acc + c * kWidth, bytes);
      }
      multiply<1>(value, probability, depth, last, add);
      std::memcpy(acc + c * kWidth, last, bytes);
    }
  }

  // Most blocks change no query's maximum: nothing to multiply then, and 1 x changes no bits.
  static NAG_INLINE void scale_rows(const float* rescale, int64_t rows, float* acc) {
    V factor[kVectors];
    VecI other = {};
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      factor[j] = load(rescale + j * kLanes);
      other |= factor[j] != splat(1.0f);
    }
    if (!any(other)) {
      return;
    }
    for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        float* at = acc + row * kWidth + j * kLanes;
        store(at, load(at) * factor[j]);
      }
    }
  }

  // ---- packing -------------------------------------------------------------------------------------------------

  // Keys: tiles [m / 16][width / 16]. Values: per block tiles [value_width / 16][keys / 32].
  static void pack_head(const AttentionParams& p, int64_t segment_id, int64_t sample, int64_t head, void*) {
    const Segment& s = p.segment[segment_id];
    const int64_t first = s.first[sample];
    const int64_t n = s.first[sample + 1] - first;
    if (n == 0) {
      return;
    }
    const int64_t* index = s.index + first;
    const int64_t d = p.head_size;
    const int64_t row = packed_row(p, s, sample, head);
    const T* key = static_cast<const T*>(s.key) + sample * s.key_stride[0] + head * s.key_stride[2];
    const T* value = static_cast<const T*>(s.value) + sample * s.value_stride[0] + head * s.value_stride[2];
    Element* packed_key = static_cast<Element*>(s.packed_key) + row * key_width(d);
    Element* packed_value = static_cast<Element*>(s.packed_value) + row / kPack * value_width(d);
    const int64_t block = block_keys(n);
    for (int64_t k0 = 0; k0 < n; k0 += block) {
      const int64_t keys = min64(block, n - k0);
      pack_keys(key, s.key_stride[1], index + k0, keys, d, packed_key + k0 * key_width(d));
      pack_values(value, s.value_stride[1], index + k0, keys, d, packed_value + k0 / kPack * value_width(d));
    }
  }

  static void pack_keys(const T* key, int64_t stride, const int64_t* index, int64_t keys, int64_t d, Element* out) {
    const int64_t width = key_width(d);
    for (int64_t k = 0; k < round_up(keys, kKeyRound); ++k) {
      float* tiles = reinterpret_cast<float*>(out + k / kTile * kTile * width + k % kTile * kTile);
      const T* row = key + index[min64(k, keys - 1)] * stride;
      prefetch_row(key + index[min64(k + kPrefetchRows, keys - 1)] * stride, d);
      for (int64_t c = 0; c < width; c += kTile) {
        store(tiles + c * kTile, k < keys ? load_words<M, kPack>(row, c, d) : V{});
      }
    }
  }

  static void pack_values(const T* value, int64_t stride, const int64_t* index, int64_t keys, int64_t d, Element* out) {
    const int64_t depth = packs(keys) / kTile;
    for (int64_t k = 0; k < depth; ++k) {
      const T* rows[2 * kTile];
      for (int64_t i = 0; i < 2 * kTile; ++i) {
        rows[i] = value + index[min64(2 * kTile * k + i, keys - 1)] * stride;
        prefetch_row(value + index[min64(2 * kTile * k + i + kPrefetchRows, keys - 1)] * stride, d);
      }
      const int64_t live = keys - 2 * kTile * k;
      for (int64_t c = 0; c < d; c += kTile) {
        V tile[kTile];
#pragma GCC unroll 16
        for (int64_t i = 0; i < kTile; ++i) {
          const V even = load_words<M, 1>(rows[2 * i], c, 2 * i < live ? d : 0);
          const V odd = load_words<M, 1>(rows[2 * i + 1], c, 2 * i + 1 < live ? d : 0);
          tile[i] = (V)((VecU)even >> 16 | (VecU)odd);
        }
        transpose<M>(tile);
        float* to = reinterpret_cast<float*>(out + (c / kTile * depth + k) * kTileWords);
#pragma GCC unroll 16
        for (int64_t i = 0; i < kTile; ++i) {
          store(to + i * kTile, tile[i]);
        }
      }
    }
  }
};

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
