// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The memory of one thread that computes a gradient, and one sample and key head as a call of attention of its own.
#pragma once

#include "attention_kernel.h"

namespace nag {
namespace NAG_ISA {
namespace {

template <class Tiles>
struct GradientMemory {
  using T = typename Tiles::T;
  using Element = typename Tiles::Element;
  using Forward = Attention<Tiles>;
  using ForwardScratch = AttentionScratch<Tiles>;
  using Wide = RegisterTiles<Plain<T>>;  // computed in the accumulator's type
  using M = typename Tiles::M;
  using V = typename Tiles::V;
  using Acc = typename Tiles::Acc;
  static constexpr int kLanes = Tiles::kLanes;
  static constexpr int kWidth = Tiles::kWidth;
  static constexpr int64_t kPack = Tiles::kPack;

  // What is kept of each row. Logits of a segment weigh 2^(scale S + offset - rest), times a share of each branch.
  enum RowNumber {
    kOffset = 0,  // 3, by segment
    kRest = 3,    // 3
    kShare = 6,   // 3 of branch +, then 3 of branch -
    kDelta = 12,  // 2, by branch: sum(dZ Z) over the head
    kRowNumbers = 14
  };

  struct Scratch {
    // For all steps.
    Element* packed_key;  // K in rows of keys, for the logits
    Acc* packed_values;   // V^T in rows of channels, for Z
    Acc* gradient;        // [H, D][kWidth]: dL/dout of a panel
    Acc* pack_row;
    char* forward;  // what attention_kernel.h wants
    // For the third step.
    Acc* wide_value;  // V in rows of keys, for dP
    Acc* wide_key;    // K^T in rows of channels, for dQ
    Acc* d_query;     // [queries of a key head, panels][D][kWidth]
    Acc* d_key;       // [kMostKeys][columns]
    Acc* d_value;
    Acc* weights;     // [kMostKeys][kWidth]: P
    Acc* d_logits;    // [kMostKeys][kWidth]: dP, then dS
    Acc* push;        // [D][kWidth], as channels x queries
    Acc* push_rows;   // [kWidth][columns], as queries x channels
    Acc* query_rows;  // [kWidth][columns]
  };

  static int64_t columns(int64_t d) { return (d + kLanes - 1) / kLanes * kLanes; }
  static int64_t round_keys(int64_t n) { return (n + kPack - 1) / kPack * kPack; }

  static int64_t most_keys(const AttentionParams& p) {
    int64_t most = 0;
    for (const Segment& s : p.segment) {
      for (int64_t i = 0; i < s.packed_batch; ++i) {
        const int64_t n = s.first[i + 1] - s.first[i];
        most = n > most ? n : most;
      }
    }
    return round_keys(most) + kPack;
  }

  // bytes: what the first two steps need, and what the third does.
  static Scratch carve(const GradientParams& g, void* memory, size_t (&bytes)[2]) {
    const AttentionParams& p = g.attention;
    const int64_t d = p.head_size;
    const int64_t keys = most_keys(p) * kNumSegments;
    const int64_t repeats = p.heads / p.key_heads;
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory);
    uintptr_t at = start;
    Scratch s;
    const auto take = [&at](auto*& pointer, int64_t count) { ForwardScratch::take(pointer, count, at); };
    size_t forward;
    ForwardScratch::carve(one_head(g), nullptr, &forward);
    take(s.packed_key, keys * Tiles::key_width(d));
    take(s.packed_values, keys * d);
    take(s.gradient, p.heads * d * kWidth);
    take(s.pack_row, d + kLanes);
    take(s.forward, static_cast<int64_t>(forward));
    bytes[0] = at - start;
    take(s.wide_value, keys * d);
    take(s.wide_key, keys * d);
    take(s.d_query, g.d_query == nullptr ? 0 : repeats * g.panels * d * kWidth);
    take(s.d_key, Tiles::kMostKeys * columns(d));
    take(s.d_value, Tiles::kMostKeys * columns(d));
    take(s.weights, Tiles::kMostKeys * kWidth);
    take(s.d_logits, Tiles::kMostKeys * kWidth);
    take(s.push, d * kWidth);
    take(s.push_rows, kWidth * columns(d));
    take(s.query_rows, kWidth * columns(d));
    bytes[1] = at - start;
    return s;
  }
  static Scratch carve(const GradientParams& g, void* memory) {
    size_t bytes[2];
    return carve(g, memory, bytes);
  }

  static void scratch_bytes(const GradientParams& g, size_t (&bytes)[2]) { carve(g, nullptr, bytes); }

  // ---- one sample and key head as a call of its own --------------------------------------------------------------

  static AttentionParams one_head(const GradientParams& g) {
    AttentionParams p = g.attention;
    p.heads = p.key_heads = 1;
    p.tile_tokens = kWidth;
    return p;
  }

  struct Head {
    AttentionParams p;           // its packed keys in key-rows, its values for Z
    AttentionParams swapped;     // keys and values exchanged, in the accumulator's type
    int64_t zero_to[3][2] = {};  // packed_first of each segment

    void set_up(const GradientParams& g, int64_t sample, int64_t key_head, const Scratch& scratch) {
      const int64_t d = g.attention.head_size;
      p = one_head(g);
      for (Segment& s : p.segment) {
        if (s.packed_batch == 0) {
          continue;
        }
        s.key = static_cast<const T*>(s.key) + sample * s.key_stride[0] + key_head * s.key_stride[2];
        s.value = static_cast<const T*>(s.value) + sample * s.value_stride[0] + key_head * s.value_stride[2];
        s.first += s.packed_batch == 1 ? 0 : sample;
        s.packed_batch = 1;
      }
      swapped = p;
      int64_t at = 0;
      for (int id = 0; id < kNumSegments; ++id) {
        Segment& s = p.segment[id];
        Segment& w = swapped.segment[id];
        if (s.packed_batch == 0) {
          continue;
        }
        zero_to[id][1] = round_keys(s.first[1] - s.first[0]);
        s.packed_first = w.packed_first = zero_to[id];
        s.packed_key = scratch.packed_key + at * Tiles::key_width(d);
        s.packed_value = scratch.packed_values + at * d;
        w.key = s.value;
        w.value = s.key;
        std::memcpy(w.key_stride, s.value_stride, sizeof w.key_stride);
        std::memcpy(w.value_stride, s.key_stride, sizeof w.value_stride);
        w.packed_key = scratch.wide_value + at * d;
        w.packed_value = scratch.wide_key + at * d;
        at += zero_to[id][1] + kPack;
        Tiles::pack_head(p, id, 0, 0, scratch.pack_row);
      }
    }
    void pack_swapped(const Scratch& scratch) {
      for (int id = 0; id < kNumSegments; ++id) {
        if (swapped.segment[id].packed_batch != 0) {
          Wide::pack_head(swapped, id, 0, 0, scratch.pack_row);
        }
      }
    }
  };

  static NAG_INLINE int64_t panel_index(const GradientParams& g, int64_t sample, int64_t head, int64_t panel) {
    return ((sample - g.first_sample) * g.attention.heads + head) * g.panels + panel;
  }
  static NAG_INLINE Acc* panel_of(const GradientParams& g, void* base, int64_t index) {
    return static_cast<Acc*>(base) + index * g.attention.head_size * kWidth;
  }
  static NAG_INLINE Acc* rows_of(const GradientParams& g, int64_t index) {
    return static_cast<Acc*>(g.rows) + index * kRowNumbers * kWidth;
  }

  static void load_panel(const GradientParams& g, int64_t sample, int64_t head, int64_t panel, Element* out) {
    const AttentionParams& p = g.attention;
    const T* query = static_cast<const T*>(p.query) + sample * p.query_stride[0] + panel * kWidth * p.query_stride[1] +
                     head * p.query_stride[2];
    Forward::load_query(query, p.query_stride[1], p.query_stride[2], min64(kWidth, p.tokens - panel * kWidth),
                        p.head_size, p.softmax_scale < 0, out);
  }
};

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
