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

#include "attention_kernel.h"
#include "gradient_rule.h"

namespace nag {
namespace NAG_ISA {
namespace {

template <class Tiles>
struct Gradient {
  using T = typename Tiles::T;
  using Element = typename Tiles::Element;
  using Forward = Attention<Tiles>;
  using Wide = RegisterTiles<Plain<T>>;  // all but the logits is computed in the accumulator's type
  using WideForward = Attention<Wide>;
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
    Element* packed_key;  // K in rows of keys, for the logits
    Acc* packed_values;   // V^T in rows of channels, for Z
    Acc* wide_value;      // V in rows of keys, for dP
    Acc* wide_key;        // K^T in rows of channels, for dQ
    Acc* d_query;         // [queries of a key head, panels][D][kWidth]
    Acc* d_key;           // [kMostKeys][columns]
    Acc* d_value;
    Acc* weights;     // [kMostKeys][kWidth]: P
    Acc* d_logits;    // [kMostKeys][kWidth]: dP, then dS
    Acc* push;        // [D][kWidth], as channels x queries
    Acc* push_rows;   // [kWidth][columns], as queries x channels
    Acc* query_rows;  // [kWidth][columns]
    Acc* gradient;    // [H, D][kWidth]: dL/dout of a panel
    Acc* pack_row;
    char* forward;  // what attention_kernel.h wants
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

  static Scratch carve(const GradientParams& g, void* memory, size_t* bytes) {
    const AttentionParams& p = g.attention;
    const int64_t d = p.head_size;
    const int64_t keys = most_keys(p) * kNumSegments;
    const int64_t repeats = p.heads / p.key_heads;
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory);
    uintptr_t at = start;
    Scratch s;
    const auto take = [&at](auto*& pointer, int64_t count) { Forward::take(pointer, count, at); };
    take(s.packed_key, keys * Tiles::key_width(d));
    take(s.packed_values, keys * d);
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
    take(s.gradient, p.heads * d * kWidth);
    take(s.pack_row, d + kLanes);
    size_t forward;
    Forward::carve(one_head(g), nullptr, &forward);
    take(s.forward, static_cast<int64_t>(forward));
    *bytes = at - start;
    return s;
  }

  static size_t scratch_bytes(const GradientParams& g) {
    size_t bytes;
    carve(g, nullptr, &bytes);
    return bytes;
  }

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

  // ---- step 1 ----------------------------------------------------------------------------------------------------

  static void attend(const GradientParams& g, int64_t sample, int64_t key_head, int64_t first_panel, int64_t last_panel,
                     void* memory) {
    size_t bytes;
    const Scratch scratch = carve(g, memory, &bytes);
    Head one;
    one.set_up(g, sample, key_head, scratch);
    const auto forward = Forward::carve(one.p, scratch.forward, &bytes);
    const int64_t repeats = g.attention.heads / g.attention.key_heads;
    for (int64_t r = 0; r < repeats; ++r) {
      const int64_t head = key_head * repeats + r;
      for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        load_panel(g, sample, head, panel, forward.query);
        const int64_t index = panel_index(g, sample, head, panel);
        attend_panel(one.p, g.attention.settings[sample * g.attention.settings_stride], forward,
                     panel_of(g, g.positive, index), panel_of(g, g.negative, index), rows_of(g, index));
      }
    }
  }

  static void attend_panel(const AttentionParams& p, const Settings& settings, const typename Forward::Scratch& forward,
                           Acc* positive, Acc* negative, Acc* rows) {
    const int64_t d = p.head_size;
    constexpr int64_t kState = Forward::kState;
    Acc* state = forward.state;
    Acc* other = state + kState * kWidth;
    const bool vsf = p.rule == Rule::kVsf;
    const bool shared = Forward::attend(p, kShared, 0, 0, true, 1, vsf ? 0 : 1, vsf ? positive : negative, 0, forward);
    const bool forked = shared && !vsf;
    Acc before[2 * kWidth] = {};  // maximum and rest of the shared keys alone
    if (forked) {
      std::memcpy(state, other, kState * kWidth * sizeof(Acc));
      std::memcpy(positive, negative, d * kWidth * sizeof(Acc));
      std::memcpy(before, other, sizeof before);
    }
    const bool any_positive = Forward::attend(p, kPositive, 0, 0, !shared, 1, 0, positive, 0, forward) || shared;
    const bool any_negative = Forward::attend(p, kNegative, 0, 0, !forked, 1, 1, negative, 0, forward) || forked;
    if (vsf && any_positive && any_negative) {
      Forward::join(state);
    }
    for (int j = 0; j < kVectors; ++j) {
      const int64_t at = j * kLanes;
      const V inverse[2] = {any_positive ? splat(Acc(1)) / load(state + 2 * kWidth + at) : V{},
                            any_negative ? splat(Acc(1)) / load(other + 2 * kWidth + at) : V{}};
      for (int64_t c = 0; c < d; ++c) {
        V plus = any_positive ? load(positive + c * kWidth + at) * inverse[0] : V{};
        const V minus = any_negative ? load(negative + c * kWidth + at) * inverse[1] : V{};
        if (vsf) {
          plus = fma(splat(static_cast<Acc>(-settings.scale)), minus, plus);
        }
        store(positive + c * kWidth + at, plus);
        store(negative + c * kWidth + at, minus);
      }
      const auto keep = [&](int id, const Acc* maximum, bool any) {
        const V bias = splat(static_cast<Acc>(p.segment[id].logit_bias * kLog2E));
        const V top = any ? load(maximum + at) : V{};
        const V rest = any ? load(maximum + kWidth + at) : V{};
        store(rows + (kOffset + id) * kWidth + at, bias - top);
        store(rows + (kRest + id) * kWidth + at, rest - Forward::lost_by_difference(bias, top));
      };
      const Acc* shared_top = forked ? before : state;
      keep(kShared, shared_top, shared);
      keep(kPositive, state, any_positive);
      keep(kNegative, other, any_negative);
      for (int branch = 0; branch < 2; ++branch) {
        const Acc* maximum = branch == 0 ? state : other;
        V share = {};
        if (forked) {
          share = exp2_nonpositive<false>((load(before + at) - load(maximum + at)) +
                                          (load(before + kWidth + at) - load(maximum + kWidth + at)));
        } else if (branch == 0) {
          share = splat(Acc(1));
        }
        Acc* shares = rows + (kShare + 3 * branch) * kWidth + at;
        store(shares + kShared * kWidth, share * inverse[branch]);
        store(shares + kPositive * kWidth, branch == 0 ? inverse[0] : V{});
        store(shares + kNegative * kWidth, branch == 1 ? inverse[1] : V{});
      }
    }
  }

  // ---- step 2 ----------------------------------------------------------------------------------------------------

  static void differentiate_rule(const GradientParams& g, int64_t sample, int64_t panel, void* memory) {
    size_t bytes;
    const Scratch scratch = carve(g, memory, &bytes);
    const AttentionParams& p = g.attention;
    const int64_t d = p.head_size;
    const T* push = static_cast<const T*>(g.push) + sample * g.push_stride[0] + panel * kWidth * g.push_stride[1];
    for (int64_t head = 0; head < p.heads; ++head) {
      WideForward::load_query(push + head * g.push_stride[2], g.push_stride[1], g.push_stride[2],
                              min64(kWidth, p.tokens - panel * kWidth), d, false, scratch.gradient + head * d * kWidth);
    }
    const int64_t index = panel_index(g, sample, 0, panel);
    RulePanel<M> rule;
    rule.rule = p.rule;
    rule.heads = p.heads;
    rule.head_size = d;
    rule.gradient = scratch.gradient;
    rule.positive = panel_of(g, g.positive, index);
    rule.negative = panel_of(g, g.negative, index);
    rule.head_stride = g.panels * d * kWidth;
    rule.delta = rows_of(g, index) + kDelta * kWidth;
    rule.delta_stride = g.panels * kRowNumbers * kWidth;
    rule.sums = static_cast<Acc*>(g.settings_sums) + ((sample - g.first_sample) * g.panels + panel) * 3;
    rule.run(p.settings[sample * p.settings_stride]);
  }

  // ---- step 3 ----------------------------------------------------------------------------------------------------

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
    size_t bytes;
    const Scratch scratch = carve(g, memory, &bytes);
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
    Element* query = Forward::carve(one.p, scratch.forward, &bytes).query;
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
      to_rows(scratch.push, d, scratch.push_rows);
      outer(scratch.weights, scratch.push_rows, keys, columns(d), scratch.d_value);
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
      outer(scratch.d_logits, scratch.query_rows, keys, columns(d), scratch.d_key);
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
        to_rows(scratch.d_query + (r * g.panels + panel) * d * kWidth, d, scratch.push_rows);
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
    return {kWidth, kRowNumbers, sizeof(Acc), scratch_bytes, attend, differentiate_rule, differentiate_head, narrow};
  }
};

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
