// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The first two steps of the gradient: Z+ and Z- again, by the forward's own softmax, and from them dL/dZ+ and dL/dZ-.
#pragma once

#include "gradient_memory.h"
#include "gradient_rule.h"

namespace nag {
namespace NAG_ISA {
namespace {

template <class Tiles>
struct GradientBranches : GradientMemory<Tiles> {
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
  using WideForward = Attention<Wide>;

  // ---- step 1 ----------------------------------------------------------------------------------------------------

  static void attend(const GradientParams& g, int64_t sample, int64_t key_head, int64_t first_panel, int64_t last_panel,
                     void* memory) {
    const Scratch scratch = carve(g, memory);
    Head one;
    one.set_up(g, sample, key_head, scratch);
    size_t bytes;
    const auto forward = ForwardScratch::carve(one.p, scratch.forward, &bytes);
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
    const Scratch scratch = carve(g, memory);
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
};

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
