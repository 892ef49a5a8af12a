// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The gradient of guided attention on one SIMD path; nag_kernels/gradient.py says the method in plain PyTorch. Lanes
// are queries, as in attention_kernel.h, whose softmax computes Z+ and Z- again here. Then, by the letters of
// gradient.py, for each block of keys and panel of queries, "tile x panel of queries" as there:
//   P = 2^(S - m),  dP = V dZ^T,  dS = P (dP - delta),  dQ^T += K^T dS
// and, summed over the queries of a panel, "keys x channels": dV += P dZ,  dK += dS Q.
// The rows' factors 2^(m - L) go into dZ and delta, so that one P serves both branches of a shared key.
#pragma once

#include "gradient_branches.h"
#include "gradient_tiles.h"

namespace nag {
namespace NAG_ISA {
namespace {

template <class Tiles>
struct Gradient : GradientBranches<Tiles> {
  using Memory = GradientMemory<Tiles>;
  using Memory::carve;
  using Memory::columns;
  using Memory::kDelta;
  using Memory::kLanes;
  using Memory::kOffset;
  using Memory::kRest;
  using Memory::kRowNumbers;
  using Memory::kShare;
  using Memory::kWidth;
  using Memory::load_panel;
  using Memory::panel_index;
  using Memory::panel_of;
  using Memory::rows_of;
  using typename Memory::Acc;
  using typename Memory::Element;
  using typename Memory::Forward;
  using typename Memory::ForwardScratch;
  using typename Memory::Head;
  using typename Memory::M;
  using typename Memory::Scratch;
  using typename Memory::T;
  using typename Memory::V;
  using typename Memory::Wide;
  using Branches = GradientBranches<Tiles>;
  using Outer = GradientTiles<M>;

  // ---- step 3 ----------------------------------------------------------------------------------------------------

  // The query's rows as they are, zeros beyond the last token and channel.
  static void load_rows(const GradientParams& g, int64_t sample, int64_t head, int64_t panel, Acc* to) {
    const AttentionParams& p = g.attention;
    const T* query = static_cast<const T*>(p.query) + sample * p.query_stride[0] + head * p.query_stride[2];
    const int64_t d = p.head_size;
    for (int64_t q = 0; q < kWidth; ++q) {
      const int64_t token = panel * kWidth + q;
      for (int64_t c = 0; c < d; c += kLanes) {
        store(to + q * columns(d) + c,
              token < p.tokens ? load_words<M, 1>(query + token * p.query_stride[1], c, d) : V{});
      }
    }
  }

  // push = dZ+ times its share + dZ- times its share; delta likewise.
  static void combine(const GradientParams& g, const Settings& settings, int64_t index, int id, Acc* push,
                      V (&delta)[kVectors]) {
    const int64_t d = g.attention.head_size;
    const bool vsf = g.attention.rule == Rule::kVsf;
    const Acc* rows = rows_of(g, index);
    const Acc* positive = panel_of(g, g.positive, index);
    const Acc* negative = vsf ? positive : panel_of(g, g.negative, index);
    for (int j = 0; j < kVectors; ++j) {
      const int64_t at = j * kLanes;
      const V first = load(rows + (kShare + id) * kWidth + at);
      V second = load(rows + (kShare + 3 + id) * kWidth + at);
      delta[j] = load(rows + kDelta * kWidth + at) * first + load(rows + (kDelta + 1) * kWidth + at) * second;
      if (vsf) {  // the values of the negative text have the factor -scale
        second = second * splat(static_cast<Acc>(-settings.scale));
      }
      for (int64_t c = 0; c < d; ++c) {
        const int64_t from = c * kWidth + at;
        V sum = {};
        if (id != kNegative) {
          sum = load(positive + from) * first;
        }
        if (id != kPositive) {
          sum = fma(load(negative + from), second, sum);
        }
        store(push + from, sum);
      }
    }
  }

  static void write_rows(const Acc* from, int64_t keys, int64_t d, const int64_t* index, Acc factor, T* out, Acc* sums,
                         int64_t stride) {
    const V scale = splat(factor);
    for (int64_t k = 0; k < keys; ++k) {
      const Acc* row = from + k * columns(d);
      for (int64_t c = 0; c < d; c += kLanes) {
        const int64_t at = index[k] * stride + c;
        const int64_t count = min64(kLanes, d - c);
        V v = load(row + c) * scale;
        if (sums != nullptr) {
          v += count == kLanes ? load(sums + at) : load_partial<M>(sums + at, count);
          count == kLanes ? store(sums + at, v) : store_partial<M>(sums + at, v, count);
        } else {
          count == kLanes ? store(out + at, v) : store_partial<M>(out + at, v, count);
        }
      }
    }
  }

  static void differentiate_head(const GradientParams& g, int64_t sample, int64_t key_head, void* memory) {
    const Scratch scratch = carve(g, memory);
    Head one;
    one.set_up(g, sample, key_head, scratch);
    one.pack_swapped(scratch);
    const AttentionParams& p = g.attention;
    const int64_t d = p.head_size;
    const int64_t repeats = p.heads / p.key_heads;
    if (g.d_query != nullptr) {
      std::memset(scratch.d_query, 0, repeats * g.panels * d * kWidth * sizeof(Acc));
    }
    for (int id = 0; id < kNumSegments; ++id) {
      const Segment& s = one.p.segment[id];
      const int64_t n = s.packed_batch == 0 ? 0 : s.first[1] - s.first[0];
      if (n == 0 || (g.d_query == nullptr && g.d_key[id] == nullptr && g.d_value[id] == nullptr)) {
        continue;
      }
      const int64_t block = Tiles::block_keys(n);
      for (int64_t k0 = 0; k0 < n; k0 += block) {
        const int64_t keys = min64(block, n - k0);
        std::memset(scratch.d_key, 0, keys * columns(d) * sizeof(Acc));
        std::memset(scratch.d_value, 0, keys * columns(d) * sizeof(Acc));
        for (int64_t r = 0; r < repeats; ++r) {
          for (int64_t panel = 0; panel < g.panels; ++panel) {
            step(g, one, id, k0, keys, sample, key_head * repeats + r, panel,
                 scratch.d_query + (r * g.panels + panel) * d * kWidth, scratch);
          }
        }
        const int64_t stride = p.key_heads * d;
        const int64_t at = g.sum_key[id] != nullptr || g.sum_value[id] != nullptr
                               ? key_head * d
                               : sample * g.length[id] * stride + key_head * d;
        const auto shifted = [at](auto* base) { return base == nullptr ? nullptr : base + at; };
        const int64_t* index = s.index + s.first[0] + k0;
        if (g.d_key[id] != nullptr) {
          write_rows(scratch.d_key, keys, d, index, static_cast<Acc>(p.softmax_scale),
                     shifted(static_cast<T*>(g.d_key[id])), shifted(static_cast<Acc*>(g.sum_key[id])), stride);
        }
        if (g.d_value[id] != nullptr) {
          write_rows(scratch.d_value, keys, d, index, Acc(1), shifted(static_cast<T*>(g.d_value[id])),
                     shifted(static_cast<Acc*>(g.sum_value[id])), stride);
        }
      }
    }
    if (g.d_query != nullptr) {
      write_query(g, sample, key_head, scratch);
    }
  }

  static void step(const GradientParams& g, const Head& one, int id, int64_t k0, int64_t keys, int64_t sample,
                   int64_t head, int64_t panel, Acc* d_query, const Scratch& scratch) {
    const AttentionParams& p = g.attention;
    const int64_t d = p.head_size;
    const int64_t width = Tiles::key_width(d);
    const Segment& s = one.p.segment[id];
    const Segment& w = one.swapped.segment[id];
    const int64_t index = panel_index(g, sample, head, panel);
    const Acc* rows = rows_of(g, index);
    size_t bytes;
    Element* query = ForwardScratch::carve(one.p, scratch.forward, &bytes).query;
    load_panel(g, sample, head, panel, query);
    alignas(64) Acc largest[kWidth] = {};  // is not used
    Tiles::scores(static_cast<const Element*>(s.packed_key) + k0 * width, query, width, keys, scratch.weights, largest);
    V delta[kVectors];
    combine(g, p.settings[sample * p.settings_stride], index, id, scratch.push, delta);
    const V scale = splat(static_cast<Acc>(std::fabs(p.softmax_scale) * kLog2E));
    V offset[kVectors];
    V rest[kVectors];
    for (int j = 0; j < kVectors; ++j) {
      offset[j] = load(rows + (kOffset + id) * kWidth + j * kLanes);
      rest[j] = load(rows + (kRest + id) * kWidth + j * kLanes);
    }
    for (int64_t k = 0; k < keys; ++k) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        Acc* at = scratch.weights + k * kWidth + j * kLanes;
        store(at, exp2_nonpositive<Forward::kShort>(fma(load(at), scale, offset[j]) - rest[j]));
      }
    }
    if (g.d_value[id] != nullptr) {
      Outer::to_rows(scratch.push, d, scratch.push_rows);
      Outer::outer(scratch.weights, scratch.push_rows, keys, columns(d), scratch.d_value);
    }
    if (g.d_query == nullptr && g.d_key[id] == nullptr) {
      return;
    }
    Wide::scores(static_cast<const Acc*>(w.packed_key) + k0 * d, scratch.push, d, keys, scratch.d_logits, largest);
    for (int64_t k = 0; k < keys; ++k) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        Acc* at = scratch.d_logits + k * kWidth + j * kLanes;
        store(at, load(scratch.weights + k * kWidth + j * kLanes) * (load(at) - delta[j]));
      }
    }
    if (g.d_query != nullptr) {
      alignas(64) Acc ones[kWidth];
      for (Acc& x : ones) {
        x = 1;
      }
      Wide::values(static_cast<const Acc*>(w.packed_value) + k0 * d, scratch.d_logits, keys, d, ones, d_query);
    }
    if (g.d_key[id] != nullptr) {
      load_rows(g, sample, head, panel, scratch.query_rows);
      Outer::outer(scratch.d_logits, scratch.query_rows, keys, columns(d), scratch.d_key);
    }
  }

  static void write_query(const GradientParams& g, int64_t sample, int64_t key_head, const Scratch& scratch) {
    const AttentionParams& p = g.attention;
    const int64_t d = p.head_size;
    const int64_t repeats = p.heads / p.key_heads;
    int64_t tokens[kWidth];
    for (int64_t r = 0; r < repeats; ++r) {
      T* out = static_cast<T*>(g.d_query) + (sample * p.tokens * p.heads + key_head * repeats + r) * d;
      for (int64_t panel = 0; panel < g.panels; ++panel) {
        Outer::to_rows(scratch.d_query + (r * g.panels + panel) * d * kWidth, d, scratch.push_rows);
        for (int i = 0; i < kWidth; ++i) {
          tokens[i] = panel * kWidth + i;
        }
        // The keys were those of |scale| Q or -|scale| Q: the sign of the scale is in load_query and so is not in dS.
        write_rows(scratch.push_rows, min64(kWidth, p.tokens - panel * kWidth), d, tokens,
                   static_cast<Acc>(p.softmax_scale), out, nullptr, p.heads * d);
      }
    }
  }

  static void narrow(const void* sums, int64_t count, void* out) {
    const Acc* from = static_cast<const Acc*>(sums);
    T* to = static_cast<T*>(out);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      store(to + i, load(from + i));
    }
    if (i < count) {
      store_partial<M>(to + i, load_partial<M>(from + i, count - i), count - i);
    }
  }

  static constexpr GradientKernel kernel() {
    return {kWidth,
            kRowNumbers,
            sizeof(Acc),
            Memory::scratch_bytes,
            Branches::attend,
            Branches::differentiate_rule,
            differentiate_head,
            narrow};
  }
};

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
