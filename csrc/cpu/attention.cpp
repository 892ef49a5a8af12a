// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Host half of nag::fused_guided_attention on the CPU: check, pack keys and values once, run the query tiles.

#include <optional>

#include "capability.h"
#include "entry.h"
#include "host.h"
#include "namespace.h"
#include "workspace.h"

namespace nag {
namespace {

// Z+ and Z- of a tile are written once and read twice, so they may spill to the third-level cache.
constexpr int64_t kTileBytes = 2 << 20;
// Below this much arithmetic, waking a second thread (some 5 us) costs more than it saves.
constexpr double kSerialFlops = 1e6;

template <class Setting>
Tensor attend(const Tensor& query_given, const KeySet (&sets)[3], const Setting& scale, const Setting& tau,
              const Setting& alpha, const std::optional<double>& softmax_scale, double bias, const std::string& rule) {
  check_attention(query_given, sets, scale, tau, alpha, softmax_scale, bias, rule);
  const AttentionKernel& kernel = kernels().attention[static_cast<int>(kernel_dtype(query_given.scalar_type()))];
  count_call(Op::kAttention, kernel.path);

  const Tensor query = unit_last_stride(query_given);
  Tensor out = new_tensor(query_given, shape_of(query_given), query_given.scalar_type());
  AttentionParams p;
  p.batch = query.size(0);
  p.tokens = query.size(1);
  p.heads = query.size(2);
  p.key_heads = sets[0].key->size(2);
  p.head_size = query.size(3);
  if (p.batch == 0 || p.tokens == 0 || p.heads == 0) {
    return out;
  }
  p.query = query.const_data_ptr();
  read_strides(query, p.query_stride);
  p.out = out.mutable_data_ptr();
  p.softmax_scale = softmax_scale.has_value() ? *softmax_scale : 1.0 / std::sqrt(static_cast<double>(p.head_size));
  p.rule = kernel_rule(rule);
  const std::vector<Settings> settings = read_settings(scale, tau, alpha);
  p.settings = settings.data();
  p.settings_stride = settings.size() > 1 ? 1 : 0;

  constexpr SegmentId kIds[3] = {kPositive, kNegative, kShared};
  std::vector<Tensor> kept;  // copies of tensors without a unit last stride
  kept.reserve(2 * kNumSegments);
  Visible visible[kNumSegments];
  size_t packed_bytes = 0;
  size_t packed_at[kNumSegments][2];
  int64_t pack_items = 0;
  double keys_seen = 0;
  for (int i = 0; i < kNumSegments; ++i) {
    const KeySet& set = sets[i];
    if (set.key == nullptr || set.key->size(1) == 0) {
      continue;
    }
    Segment& s = p.segment[kIds[i]];
    const Tensor& key = kept.emplace_back(unit_last_stride(*set.key));
    const Tensor& value = kept.emplace_back(unit_last_stride(*set.value));
    s.key = key.const_data_ptr();
    s.value = value.const_data_ptr();
    read_strides(key, s.key_stride);
    read_strides(value, s.value_stride);
    const bool own_mask = set.mask != nullptr && set.mask->size(0) > 1 && set.mask->stride(0) != 0;
    s.packed_batch = s.key_stride[0] != 0 || s.value_stride[0] != 0 || own_mask ? p.batch : 1;
    s.logit_bias = kIds[i] == kNegative ? kernel_bias(bias) : 0.0;
    Visible& v = visible[kIds[i]];
    v = find_visible(key.size(1), s.packed_batch, set.mask, kernel.key_round);
    s.index = v.index.data();
    s.first = v.first.data();
    s.packed_first = v.packed_first.data();
    const int64_t rows = v.packed_first.back() * p.key_heads;
    packed_at[kIds[i]][0] = packed_bytes;
    packed_bytes += aligned(rows * kernel.key_width(p.head_size) * kernel.element_size);
    packed_at[kIds[i]][1] = packed_bytes;
    packed_bytes += aligned(rows / kernel.pack * kernel.value_width(p.head_size) * kernel.element_size);
    pack_items += s.packed_batch * p.key_heads;
    keys_seen += static_cast<double>(v.first.back()) / s.packed_batch;
  }

  // A token's bits do not depend on the tile it is in, so the tile may follow the number of threads: at least four
  // tiles each where there are enough tokens.
  const double flops = 4.0 * p.batch * p.tokens * p.heads * p.head_size * keys_seen;
  const int64_t threads = flops < kSerialFlops ? 1 : torch::stable::get_num_threads();
  const int64_t panels = (p.tokens + kernel.panel_tokens - 1) / kernel.panel_tokens;
  const int64_t acc_size = kernel.pack == 1 ? kernel.element_size : 4;
  const int64_t panel_bytes = 2 * p.heads * p.head_size * kernel.panel_tokens * acc_size;
  const int64_t tile_panels =
      std::max<int64_t>(1, std::min({kernel.tile_panels, kTileBytes / panel_bytes, p.batch * panels / (4 * threads)}));
  p.tile_tokens = tile_panels * kernel.panel_tokens;
  const int64_t tiles = (panels + tile_panels - 1) / tile_panels;
  const int64_t workers = std::min(threads, std::max(p.batch * tiles, pack_items));

  const size_t scratch = aligned(kernel.scratch_bytes(p));
  const Workspace workspace(packed_bytes + workers * scratch);
  char* const worker_scratch = workspace.data() + packed_bytes;
  for (int id = 0; id < kNumSegments; ++id) {
    if (p.segment[id].packed_batch > 0) {
      p.segment[id].packed_key = workspace.data() + packed_at[id][0];
      p.segment[id].packed_value = workspace.data() + packed_at[id][1];
    }
  }
  for_each(pack_items, workers, [&](int64_t item, int64_t worker) {
    int id = 0;
    while (item >= p.segment[id].packed_batch * p.key_heads) {
      item -= p.segment[id++].packed_batch * p.key_heads;
    }
    kernel.pack_head(p, id, item / p.key_heads, item % p.key_heads, worker_scratch + worker * scratch);
  });
  for_each(p.batch * tiles, workers, [&](int64_t item, int64_t worker) {
    kernel.run_tile(p, item / tiles, item % tiles * p.tile_tokens, worker_scratch + worker * scratch);
  });
  return out;
}

struct Cpu {
  template <class... Arguments>
  static Tensor run(const Arguments&... arguments) {
    return attend(arguments...);
  }
};

}  // namespace
}  // namespace nag

NAG_LIBRARY_IMPL(NAG_NAMESPACE, CPU, m) {
  m.impl("fused_guided_attention", NAG_BOX((&nag::call_attention<nag::Cpu, double>)));
  m.impl("fused_guided_attention.tensor", NAG_BOX((&nag::call_attention<nag::Cpu, nag::Tensor>)));
}
