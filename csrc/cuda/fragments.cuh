// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// What the kernels share between global memory and the fragments of a warp: which keys are seen, and the query as the
// first operand of the product with the keys. In a lane's numbers g = lane / 4 and t = lane % 4.
#pragma once

#include "device.cuh"
#include "params.h"

namespace nag {
namespace device {

// Whether there is a key `at` of a segment and the mask of this sample (null: no mask) shows it.
template <class Index>
NAG_DEVICE bool key_seen(const Segment& s, const uint8_t* mask, Index at) {
  bool seen = at < s.length;
  if (seen && mask != nullptr) {
    seen = load_byte(mask + at * s.mask_stride[1]) != 0;
  }
  return seen;
}

// The segment's mask of one sample; null where there is none.
NAG_DEVICE const uint8_t* mask_of(const Segment& s, int64_t sample) {
  return s.mask == nullptr ? nullptr : s.mask + sample * s.mask_stride[0];
}

NAG_DEVICE const uint16_t* query_row(const AttentionParams& p, int64_t sample, int64_t token, int head) {
  return static_cast<const uint16_t*>(p.query) + sample * p.query_stride[0] + token * p.query_stride[1] +
         head * p.query_stride[2];
}

// Channels 16 * step to 16 * step + 15 of 16 queries, as the first operand; `row` is that of query `token`, this lane's
// g. Zeros beyond the last query and the last channel.
NAG_DEVICE void load_query_step(const AttentionParams& p, const uint16_t* row, int64_t token, int step,
                                uint32_t (&words)[4]) {
  const int t = thread_index() % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // rows g, g + 8, and the same 8 channels further
    const int channel = 16 * step + i / 2 * 8 + 2 * t;
    uint32_t word[1] = {0};
    if (token + i % 2 * 8 < p.tokens && channel < p.size) {
      load(row + i % 2 * 8 * p.query_stride[1] + channel, word);
    }
    words[i] = word[0];
  }
}

template <int kTiles>
NAG_DEVICE void clear(float (&z)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    z[i][0] = z[i][1] = z[i][2] = z[i][3] = 0.0f;
  }
}

}  // namespace device
}  // namespace nag
