// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// What the cluster kernel is handed: the parameters of every kernel, and maps of the keys and values for the bulk copy
// engine.
#pragma once

#include "params.h"
#include "tile_size.h"

namespace nag {

// A map of 16-bit rows, boxes of 64 channels x `box_rows` tokens, swizzled by 128 bytes; zeros beyond the sizes
// (channels, tokens, heads, samples). Strides (token, head, sample) are in bytes. False where the engine does not take
// them.
bool encode_tensor_map(const void* rows, const int64_t (&sizes)[4], const int64_t (&strides)[3], int box_rows,
                       TensorMap* map);

inline bool map_rows(const AttentionParams& a, const void* rows, const int64_t (&stride)[3], int length,
                     TensorMap* map) {
  int64_t sizes[4] = {a.size, length, a.heads / a.repeats, a.batch};
  const int64_t elements[3] = {stride[1], stride[2], stride[0]};
  int64_t strides[3];
  for (int i = 0; i < 3; ++i) {
    if (elements[i] == 0 && i > 0) {
      sizes[i + 1] = 1;  // the kernel then stays at 0
    }
    const int64_t packed = i == 0 ? 2 * sizes[0] : strides[i - 1] * sizes[i];  // of one, any stride would do
    strides[i] = sizes[i + 1] == 1 ? packed : 2 * elements[i];
    if (strides[i] <= 0 || strides[i] % 16 != 0 || strides[i] >= (static_cast<int64_t>(1) << 40)) {
      return false;
    }
  }
  return encode_tensor_map(rows, sizes, strides, cluster_keys(next_size(kClusterSizes, a.size)), map);
}

inline ClusterParams cluster_params(const AttentionParams& a, const ClusterPlan& plan) {
  ClusterParams p{};
  p.attention = a;
  p.blocks = plan.blocks;
  p.slots = plan.slots;
  for (int i = 0; i < kNumSegments; ++i) {
    const Segment& s = a.segment[i];
    p.by_threads[i] = s.length > 0 && (s.mask != nullptr || !map_rows(a, s.key, s.key_stride, s.length, &p.key[i]) ||
                                       !map_rows(a, s.value, s.value_stride, s.length, &p.value[i]));
  }
  return p;
}

}  // namespace nag
