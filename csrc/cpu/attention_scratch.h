// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The memory of one thread that computes attention (attention_kernel.h), and how it is divided.
#pragma once

#include <cstddef>
#include <cstdint>

#include "params.h"

namespace nag {
namespace NAG_ISA {
namespace {

template <class Tiles>
struct AttentionScratch {
  using Acc = typename Tiles::Acc;
  using Element = typename Tiles::Element;
  static constexpr int kWidth = Tiles::kWidth;  // queries per panel
  // The largest logit so far is maximum + rest: the rounded number, and what its rounding left out. Weights relative to
  // the maximum alone would be off by that rest, which for logits of 1e10 is hundreds.
  static constexpr int64_t kState = 3;

  struct Scratch {
    Acc* positive;   // [panels][H * D][kWidth]: Z+ of the tile
    Acc* negative;   // [panels][H * D][kWidth]: Z-; holds the shared state's accumulator before a fork
    Acc* state;      // [panels][2 branches][kState][kWidth]: maximum, rest, sum
    Acc* norms;      // [panels][Z+, G][kWidth]
    Acc* scores;     // [kMostKeys][kWidth]; then probabilities, where kPack is 2 as pairs
    Element* query;  // [panels][key_width][kWidth]
  };

  template <class N>
  static void take(N*& pointer, int64_t count, uintptr_t& at) {
    pointer = reinterpret_cast<N*>(at);
    at += (count * sizeof(N) + 63) / 64 * 64;
  }

  static Scratch carve(const AttentionParams& p, void* memory, size_t* bytes) {
    const int64_t panels = p.tile_tokens / kWidth;
    const int64_t channels = p.heads * p.head_size;
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory);
    uintptr_t at = start;
    Scratch s;
    take(s.scores, Tiles::kMostKeys * kWidth, at);
    take(s.query, panels * Tiles::key_width(p.head_size) * kWidth, at);
    take(s.state, panels * 2 * kState * kWidth, at);
    take(s.norms, panels * 2 * kWidth, at);
    take(s.positive, panels * channels * kWidth, at);
    take(s.negative, panels * channels * kWidth, at);
    *bytes = at - start;
    return s;
  }

  static size_t bytes(const AttentionParams& p) {
    size_t tile;
    carve(p, nullptr, &tile);
    const size_t row = (p.head_size + Tiles::kLanes) * sizeof(Acc);  // packing gathers one row in the same memory
    return tile > row ? tile : row;
  }
};

}  // namespace
}  // namespace NAG_ISA
}  // namespace nag
