// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Guided attention on one SIMD path. Vector lanes are queries: each lane runs the online softmax, the norms and the
// blend of its own token, so a token's bits cannot depend on its neighbours, and no step needs a horizontal sum.
// Both matrix products are then "tile x panel of queries": scores[key][query] = K Q^T and acc[channel][query] += V^T P;
// `Tiles` does them, in vector registers (register_tiles.h) or in matrix registers (matrix_tiles.h).
//
// One work item = tile_tokens queries of one sample, all heads:
//   for each head: load Q^T; shared keys into one state; fork it; text+ into one copy, text- into the other;
//   then the row factors (a, b) from sums over all heads, and out = a Z+ - b Z-.
// Rule VSF forks nothing: one state runs over shared keys and text+, one over text- alone; both are then divided by the
// sum of one softmax over all of them.
#pragma once

#include "attention_scratch.h"
#include "guidance_rule.h"
#include "params.h"
#include "register_tiles.h"
#include "vector.h"

namespace nag {
namespace NAG_ISA {
namespace {

template <class Tiles>
struct Attention {
  using Memory = AttentionScratch<Tiles>;
  using Scratch = typename Memory::Scratch;
  using Acc = typename Tiles::Acc;
  using Element = typename Tiles::Element;
  using M = typename Tiles::M;
  using T = typename Tiles::T;
  using V = typename Tiles::V;
  static constexpr int kLanes = Tiles::kLanes;
  static constexpr int kWidth = Tiles::kWidth;  // queries per panel
  static constexpr int64_t kPack = Tiles::kPack;

  static constexpr int64_t kState = Memory::kState;
  static constexpr bool kShort = sizeof(T) == 2;

  // ---- online softmax ------------------------------------------------------------------------------------------

  // (a - b) - round(a - b), exactly (Knuth's TwoSum).
  static NAG_INLINE V lost_by_difference(V a, V b) {
    const V difference = a - b;
    const V from_b = difference - a;
    return (a - (difference - from_b)) - (b + from_b);
  }

  // One block of keys into one panel's state (maximum, sum, acc). `first`: the state is empty.
  static void step(const AttentionParams& p, const Element* key, const Element* value, int64_t keys, Acc bias,
                   bool first, const Element* query, Acc* maximum, Acc* acc, const Scratch& scratch) {
    const int64_t d = p.head_size;
    const Acc scale = static_cast<Acc>(std::fabs(p.softmax_scale) * kLog2E);  // load_query takes care of the sign
    Acc* rest = maximum + kWidth;
    Acc* sum = rest + kWidth;
    Acc* scores = scratch.scores;
    Acc block_maximum[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      block_maximum[i] = -std::numeric_limits<Acc>::infinity();
    }
    Tiles::scores(key, query, Tiles::key_width(d), keys, scores, block_maximum);

    // Weights are 2^(scale score + offset - rest): the first sum is rounded once, and is exactly the rest for the
    // largest logit, whose weight is thus 1. What the rounding of offset lost counts as rest.
    Acc rescale[kWidth];
    V offset[kVectors];
    V above[kVectors];
    V total[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      const V largest = load(block_maximum + j * kLanes);
      V top = fma(largest, splat(scale), splat(bias));
      above[j] = fma(largest, splat(scale), splat(bias) - top) + lost_by_difference(splat(bias), top);
      total[j] = V{};
      if (!first) {
        const V before = load(maximum + j * kLanes);
        const V before_rest = load(rest + j * kLanes);
        const auto stays = (before > top) | ((before == top) & (before_rest > above[j]));
        top = stays ? before : top;
        above[j] = stays ? before_rest : above[j];
        const V factor = exp2_nonpositive<false>((before - top) + (before_rest - above[j]));
        store(rescale + j * kLanes, factor);
        total[j] = load(sum + j * kLanes) * factor;
      }
      store(maximum + j * kLanes, top);
      store(rest + j * kLanes, above[j]);
      offset[j] = splat(bias) - top;
      above[j] -= lost_by_difference(splat(bias), top);
    }
    probabilities(scores, keys, splat(scale), offset, above, total);
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      store(sum + j * kLanes, total[j]);
    }
    Tiles::values(value, reinterpret_cast<const Element*>(scores), keys, d, first ? nullptr : rescale, acc);
  }

  // scores -> 2^(scale scores + offset - rest), in place, as pairs where kPack is 2, which then end with zeros up to a
  // whole block; their sum is added to total.
  static NAG_INLINE void probabilities(Acc* scores, int64_t keys, V scale, const V (&offset)[kVectors],
                                       const V (&rest)[kVectors], V (&total)[kVectors]) {
    for (int64_t k0 = 0; k0 < keys; k0 += kSumRun) {
      const int64_t end = min64(k0 + kSumRun, keys);
      V some[kVectors] = {};
      for (int64_t k = k0; k < end; k += kPack) {
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) {
          const Acc* at = scores + k * kWidth + j * kLanes;
          Acc* to = scores + k / kPack * kWidth + j * kLanes;
          if constexpr (kPack == 1) {
            const V probability = exp2_nonpositive<kShort>(fma(load(at), scale, offset[j]) - rest[j]);
            some[j] += probability;
            store(to, probability);
          } else {
            const V even = exp2_coarse(fma(load(at), scale, offset[j]) - rest[j]);
            const V odd = k + 1 < keys ? exp2_coarse(fma(load(at + kWidth), scale, offset[j]) - rest[j]) : V{};
            const VecU pair = bf16_pair(even, odd);
            // The sum runs over the rounded values, the ones that weigh the rows of V: the weights then sum to one.
            some[j] = dot_bf16_pairs(pair, VecU{} + 0x3f803f80u, some[j]);
            store(to, (VecF)pair);
          }
        }
      }
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        total[j] += some[j];
      }
    }
    const int64_t weighed = (keys + kPack - 1) / kPack;
    std::memset(scores + weighed * kWidth, 0, (Tiles::packs(keys) - weighed) * kWidth * sizeof(Acc));
  }

  // All visible keys of one segment into the states of every panel of the tile. Returns whether there were any.
  static bool attend(const AttentionParams& p, int64_t segment_id, int64_t sample, int64_t key_head, bool first,
                     int64_t panels, int branch, Acc* acc, int64_t acc_stride, const Scratch& scratch) {
    const Segment& s = p.segment[segment_id];
    if (s.packed_batch == 0) {
      return false;
    }
    const int64_t own = s.packed_batch == 1 ? 0 : sample;
    const int64_t n = s.first[own + 1] - s.first[own];
    if (n == 0) {
      return false;
    }
    const int64_t width = Tiles::key_width(p.head_size);
    const int64_t value_width = Tiles::value_width(p.head_size);
    const int64_t row = packed_row(p, s, own, key_head);
    const Element* key = static_cast<const Element*>(s.packed_key) + row * width;
    const Element* value = static_cast<const Element*>(s.packed_value) + row / kPack * value_width;
    const int64_t block = Tiles::block_keys(n);
    for (int64_t k0 = 0; k0 < n; k0 += block) {
      const int64_t keys = min64(block, n - k0);
      for (int64_t i = 0; i < panels; ++i) {
        step(p, key + k0 * width, value + k0 / kPack * value_width, keys, static_cast<Acc>(s.logit_bias * kLog2E),
             first && k0 == 0, scratch.query + i * width * kWidth, scratch.state + (2 * i + branch) * kState * kWidth,
             acc + i * acc_stride, scratch);
      }
    }
    return true;
  }

  // Q^T (or -Q^T, for a negative softmax_scale) of one panel and head: [key_width][kWidth], zeros beyond the end. The
  // next head's rows, one token apart, are fetched meanwhile.
  static void load_query(const T* query, int64_t stride, int64_t head_stride, int64_t tokens, int64_t d, bool negate,
                         Element* out) {
    const int64_t words = Tiles::key_width(d);
    for (int j = 0; j < kVectors; ++j) {
      for (int64_t c = 0; c < words; c += kLanes) {
        const int64_t live = tokens - j * kLanes;
        const T* row = query + j * kLanes * stride;
        V rows[kLanes];
        if (live >= kLanes && (c + kLanes) * kPack <= d) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) {
            rows[i] = load_words<M, kPack>(row + i * stride, c, d);
            __builtin_prefetch(row + i * stride + head_stride + c * kPack);
          }
        } else {
          for (int i = 0; i < kLanes; ++i) {
            rows[i] = i < live ? load_words<M, kPack>(row + i * stride, c, d) : V{};
          }
        }
        if (negate) {
          for (int i = 0; i < kLanes; ++i) {
            rows[i] = Tiles::negate(rows[i]);
          }
        }
        transpose<M>(rows);
        Acc* to = reinterpret_cast<Acc*>(out) + c * kWidth + j * kLanes;
        if (c + kLanes <= words) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) {
            store(to + i * kWidth, rows[i]);
          }
        } else {
          for (int i = 0; i < words - c; ++i) {
            store(to + i * kWidth, rows[i]);
          }
        }
      }
    }
  }

  // ---- norms and blend -----------------------------------------------------------------------------------------

  // VSF: the sums of both branches become those of one softmax over the keys of both, each still relative to its own
  // branch's maximum, so that acc / sum is the branch's share of that softmax's output.
  static void join(Acc* state) {
    Acc* other = state + kState * kWidth;
    for (int j = 0; j < kVectors; ++j) {
      const int64_t maximum = j * kLanes;
      const int64_t rest = maximum + kWidth;
      const int64_t sum = rest + kWidth;
      const V lead = (load(state + maximum) - load(other + maximum)) + (load(state + rest) - load(other + rest));
      const V zero = {};
      const V weight = exp2_nonpositive<false>(lead < zero ? lead : zero);
      const V other_weight = exp2_nonpositive<false>(lead < zero ? zero : -lead);
      const V total = load(state + sum) * weight + load(other + sum) * other_weight;
      store(state + sum, total / weight);
      store(other + sum, total / other_weight);
    }
  }

  // acc -> Z = acc / sum for one panel and head, in place, zeros where a branch saw no key; adds |Z+|_1 and |G|_1 of
  // the head to norms.
  static void finish_head(Acc* positive, Acc* negative, int64_t d, const Acc* state, bool any_positive,
                          bool any_negative, Acc scale, Acc* norms) {
    for (int j = 0; j < kVectors; ++j) {
      const V inverse_positive = any_positive ? splat(Acc(1)) / load(state + 2 * kWidth + j * kLanes) : V{};
      const V inverse_negative = any_negative ? splat(Acc(1)) / load(state + (kState + 2) * kWidth + j * kLanes) : V{};
      V head_positive = {};
      V head_guided = {};
      for (int64_t c0 = 0; c0 < d; c0 += kSumRun) {
        V some_positive = {};
        V some_guided = {};
        const int64_t end = min64(c0 + kSumRun, d);
        for (int64_t c = c0; c < end; ++c) {
          const int64_t at = c * kWidth + j * kLanes;
          const V zp = any_positive ? load(positive + at) * inverse_positive : V{};
          const V zn = any_negative ? load(negative + at) * inverse_negative : V{};
          store(positive + at, zp);
          store(negative + at, zn);
          some_positive += abs(zp);
          some_guided += abs(extrapolate(zp, zn, splat(scale), splat(scale - 1)));
        }
        head_positive += some_positive;
        head_guided += some_guided;
      }
      store(norms + j * kLanes, load(norms + j * kLanes) + head_positive);
      store(norms + kWidth + j * kLanes, load(norms + kWidth + j * kLanes) + head_guided);
    }
  }

  static void blend(const AttentionParams& p, const Settings& settings, const Acc* positive, const Acc* negative,
                    const Acc* norms, int64_t tokens, T* out) {
    const int64_t channels = p.heads * p.head_size;
    for (int j = 0; j < kVectors; ++j) {
      const int64_t live = min64(kLanes, tokens - j * kLanes);
      if (live <= 0) {
        break;
      }
      V a;
      V b;
      row_factors<M>(p.rule, settings, load(norms + j * kLanes), load(norms + kWidth + j * kLanes), &a, &b);
      for (int64_t c = 0; c < channels; c += kLanes) {
        const int64_t count = min64(kLanes, channels - c);
        V rows[kLanes];
        if (count == kLanes) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) {
            const int64_t at = (c + i) * kWidth + j * kLanes;
            rows[i] = extrapolate(load(positive + at), load(negative + at), a, b);
          }
        } else {
          for (int i = 0; i < kLanes; ++i) {
            const int64_t at = (c + min64(i, count - 1)) * kWidth + j * kLanes;
            rows[i] = extrapolate(load(positive + at), load(negative + at), a, b);
          }
        }
        transpose<M>(rows);
        T* row = out + j * kLanes * channels + c;
        if (live == kLanes && count == kLanes) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) {
            store(row + i * channels, rows[i]);
          }
        } else {
          for (int i = 0; i < live; ++i) {
            store_partial<M>(row + i * channels, rows[i], count);
          }
        }
      }
    }
  }

  // ---- one work item -------------------------------------------------------------------------------------------

  static void run_tile(const AttentionParams& p, int64_t sample, int64_t first_token, void* memory) {
    size_t bytes;
    const Scratch scratch = Memory::carve(p, memory, &bytes);
    [[maybe_unused]] const typename Tiles::Session session;
    const Settings& settings = p.settings[sample * p.settings_stride];
    const bool vsf = p.rule == Rule::kVsf;
    const int64_t d = p.head_size;
    const int64_t channels = p.heads * d;
    const int64_t width = Tiles::key_width(d);
    const int64_t tokens = min64(p.tile_tokens, p.tokens - first_token);
    const int64_t panels = (tokens + kWidth - 1) / kWidth;
    const int64_t panel_size = channels * kWidth;
    const T* query = static_cast<const T*>(p.query) + sample * p.query_stride[0] + first_token * p.query_stride[1];
    std::memset(scratch.norms, 0, panels * 2 * kWidth * sizeof(Acc));

    for (int64_t head = 0; head < p.heads; ++head) {
      const int64_t key_head = head / (p.heads / p.key_heads);
      Acc* positive = scratch.positive + head * d * kWidth;
      Acc* negative = scratch.negative + head * d * kWidth;
      for (int64_t i = 0; i < panels; ++i) {
        load_query(query + i * kWidth * p.query_stride[1] + head * p.query_stride[2], p.query_stride[1],
                   p.query_stride[2], min64(kWidth, tokens - i * kWidth), d, p.softmax_scale < 0,
                   scratch.query + i * width * kWidth);
      }
      const bool shared = attend(p, kShared, sample, key_head, true, panels, vsf ? 0 : 1, vsf ? positive : negative,
                                 panel_size, scratch);
      const bool forked = shared && !vsf;
      if (forked) {  // text+ continues on a copy
        for (int64_t i = 0; i < panels; ++i) {
          Acc* state = scratch.state + i * 2 * kState * kWidth;
          std::memcpy(state, state + kState * kWidth, kState * kWidth * sizeof(Acc));
          std::memcpy(positive + i * panel_size, negative + i * panel_size, d * kWidth * sizeof(Acc));
        }
      }
      const bool any_positive =
          attend(p, kPositive, sample, key_head, !shared, panels, 0, positive, panel_size, scratch) || shared;
      const bool any_negative =
          attend(p, kNegative, sample, key_head, !forked, panels, 1, negative, panel_size, scratch) || forked;
      for (int64_t i = 0; i < panels; ++i) {
        Acc* state = scratch.state + i * 2 * kState * kWidth;
        if (vsf && any_positive && any_negative) {
          join(state);
        }
        finish_head(positive + i * panel_size, negative + i * panel_size, d, state, any_positive, any_negative,
                    static_cast<Acc>(settings.scale), scratch.norms + i * 2 * kWidth);
      }
    }

    T* out = static_cast<T*>(p.out) + (sample * p.tokens + first_token) * channels;
    for (int64_t i = 0; i < panels; ++i) {
      blend(p, settings, scratch.positive + i * panel_size, scratch.negative + i * panel_size,
            scratch.norms + i * 2 * kWidth, tokens - i * kWidth, out + i * kWidth * channels);
    }
  }

  static constexpr AttentionKernel kernel(const char* path) {
    return {path,
            kWidth,
            Tiles::kTilePanels,
            kPack,
            Tiles::kKeyRound,
            sizeof(Element),
            Tiles::key_width,
            Tiles::value_width,
            Memory::bytes,
            Tiles::pack_head,
            run_tile};
  }
};

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
