// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Host half of nag::fused_guided_attention_backward on the CPU: check, then groups of samples in three steps. The items
// of a step follow from the shapes and not from the number of threads, so neither do the bits.

#include <cstring>
#include <optional>
#include <tuple>

#include "capability.h"
#include "entry.h"
#include "host.h"
#include "namespace.h"
#include "workspace.h"

namespace nag {
namespace {

constexpr double kSerialGradientFlops = 1e6;
// Z+ and Z- of a group of samples; one sample may take more.
constexpr int64_t kGroupBytes = 32 << 20;
constexpr int kNumGradients = 10;
constexpr SegmentId kSegments[3] = {kPositive, kNegative, kShared};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// dL/d of settings that are tensors [] or [B], from sums of each sample; settings that are numbers have none.
void set_settings(const double&, const std::vector<double>&, int, Tensor*) {}
void set_settings(const Tensor& setting, const std::vector<double>& sums, int which, Tensor* out) {
  *out = new_tensor(setting, shape_of(setting), ScalarType::Float);
  float* to = static_cast<float*>(out->mutable_data_ptr());
  const int64_t samples = static_cast<int64_t>(sums.size()) / 3;
  double total = 0;
  for (int64_t i = 0; i < samples; ++i) {
    total += sums[3 * i + which];
    if (setting.dim() == 1) {
      to[i] = static_cast<float>(sums[3 * i + which]);
    }
  }
  if (setting.dim() == 0) {
    to[0] = static_cast<float>(total);
  }
}

size_t bytes_of(const Tensor& x) { return static_cast<size_t>(x.numel()) * x.element_size(); }

template <class Setting>
Gradients differentiate(const Tensor& query_given, const KeySet (&sets)[3], const Setting& scale, const Setting& tau,
                        const Setting& alpha, const std::optional<double>& softmax_scale, double bias,
                        const std::string& rule, const Tensor& push_given, const std::vector<bool>& wanted) {
  constexpr const char* op = "fused_guided_attention_backward";
  check_attention(query_given, sets, scale, tau, alpha, softmax_scale, bias, rule);
  check_like(op, "gradient", push_given, "query", query_given);
  if (!same_shape(push_given, query_given)) {
    refuse(op, "gradient must have shape ", shape_name(query_given), " like query, got ", shape_name(push_given));
  }
  if (wanted.size() != kNumGradients) {
    refuse(op, "wanted must have ", kNumGradients, " entries, got ", wanted.size());
  }
  const ScalarType dtype = query_given.scalar_type();
  const GradientKernel& kernel = kernels().gradient[static_cast<int>(kernel_dtype(dtype))];
  count_call(Op::kGradient, kernels().attention[static_cast<int>(kernel_dtype(dtype))].path);

  Tensor found[kNumGradients];
  for (Tensor& x : found) {
    x = new_tensor(query_given, {0}, dtype);
  }
  GradientParams g;
  AttentionParams& p = g.attention;
  const Tensor query = unit_last_stride(query_given);
  const Tensor push = unit_last_stride(push_given);
  p.batch = query.size(0);
  p.tokens = query.size(1);
  p.heads = query.size(2);
  p.key_heads = sets[0].key->size(2);
  p.head_size = query.size(3);
  p.query = query.const_data_ptr();
  read_strides(query, p.query_stride);
  g.push = push.const_data_ptr();
  read_strides(push, g.push_stride);
  p.softmax_scale = softmax_scale.has_value() ? *softmax_scale : 1.0 / std::sqrt(static_cast<double>(p.head_size));
  p.rule = kernel_rule(rule);
  const std::vector<Settings> settings = read_settings(scale, tau, alpha);
  p.settings = settings.data();
  p.settings_stride = settings.size() > 1 ? 1 : 0;
  const bool nothing = p.batch == 0 || p.tokens == 0 || p.heads == 0;

  if (wanted[0]) {
    found[0] = new_tensor(query, shape_of(query), dtype);
    g.d_query = found[0].mutable_data_ptr();
  }
  std::vector<Tensor> kept;
  kept.reserve(2 * kNumSegments);
  Tensor sums[3][2];
  Visible visible[kNumSegments];
  double keys_seen = 0;
  constexpr int kPlaces[3] = {1, 3, 8};  // of the keys among the arguments
  for (int i = 0; i < kNumSegments; ++i) {
    const KeySet& set = sets[i];
    if (set.key == nullptr) {
      continue;
    }
    const SegmentId id = kSegments[i];
    g.length[id] = set.key->size(1);
    const bool one_for_all = set.key->size(0) == 1 && p.batch > 1;
    const bool values_for_all = set.value->size(0) == 1 && p.batch > 1;
    Segment& s = p.segment[id];
    if (!nothing && g.length[id] > 0) {
      const Tensor& key = kept.emplace_back(unit_last_stride(*set.key));
      const Tensor& value = kept.emplace_back(unit_last_stride(*set.value));
      s.key = key.const_data_ptr();
      s.value = value.const_data_ptr();
      read_strides(key, s.key_stride);
      read_strides(value, s.value_stride);
      const bool own_mask = set.mask != nullptr && set.mask->size(0) > 1 && set.mask->stride(0) != 0;
      s.packed_batch = own_mask ? p.batch : 1;
      s.logit_bias = id == kNegative ? kernel_bias(bias) : 0.0;
      Visible& v = visible[id];
      v = find_visible(key.size(1), s.packed_batch, set.mask, 1);
      s.index = v.index.data();
      s.first = v.first.data();
      keys_seen += static_cast<double>(v.first.back()) / s.packed_batch;
    }
    for (int kind = 0; kind < 2; ++kind) {
      const int place = kPlaces[i] + kind;
      if (!wanted[place]) {
        continue;
      }
      Tensor& out = found[place];
      out = new_tensor(query, shape_of(kind == 0 ? *set.key : *set.value), dtype);
      const bool all_seen = !nothing && s.packed_batch > 0 &&
                            static_cast<int64_t>(visible[id].index.size()) == g.length[id] * s.packed_batch;
      const bool summed = !nothing && s.packed_batch > 0 && (kind == 0 ? one_for_all : values_for_all);
      if (!all_seen && bytes_of(out) > 0) {
        std::memset(out.mutable_data_ptr(), 0, bytes_of(out));
      }
      (kind == 0 ? g.d_key : g.d_value)[id] = out.mutable_data_ptr();
      if (summed) {
        Tensor& sum = sums[id][kind];
        sum = kernel.acc_size == static_cast<int64_t>(out.element_size())
                  ? out
                  : new_tensor(query, shape_of(out), ScalarType::Float);
        std::memset(sum.mutable_data_ptr(), 0, bytes_of(sum));
        (kind == 0 ? g.sum_key : g.sum_value)[id] = sum.mutable_data_ptr();
        g.one_item = true;
      }
    }
  }

  std::vector<double> settings_sums(3 * p.batch, 0.0);
  if (!nothing) {
    g.panels = (p.tokens + kernel.panel_tokens - 1) / kernel.panel_tokens;
    const int64_t panel_numbers = p.head_size * kernel.panel_tokens;
    const int64_t sample_panels = p.heads * g.panels;
    const int64_t sample_bytes = 2 * sample_panels * panel_numbers * kernel.acc_size;
    const int64_t group = std::max<int64_t>(1, std::min(p.batch, kGroupBytes / sample_bytes));
    const double flops = 14.0 * group * p.tokens * p.heads * p.head_size * keys_seen;
    const int64_t threads = flops < kSerialGradientFlops ? 1 : torch::stable::get_num_threads();
    const int64_t head_threads = std::min(threads, (g.one_item ? 1 : group) * p.key_heads);
    size_t scratch[2];
    kernel.scratch_bytes(g, scratch);
    const size_t z_bytes = aligned(group * sample_bytes / 2);
    const size_t row_bytes =
        aligned(group * sample_panels * kernel.row_numbers * kernel.panel_tokens * kernel.acc_size);
    const size_t sum_bytes = aligned(group * g.panels * 3 * kernel.acc_size);
    const Workspace workspace(2 * z_bytes + row_bytes + sum_bytes +
                              std::max(threads * scratch[0], head_threads * scratch[1]));
    g.positive = workspace.data();
    g.negative = workspace.data() + z_bytes;
    g.rows = workspace.data() + 2 * z_bytes;
    g.settings_sums = workspace.data() + 2 * z_bytes + row_bytes;
    char* const memory = workspace.data() + 2 * z_bytes + row_bytes + sum_bytes;
    const auto own = [&](int step, int64_t worker) { return memory + worker * scratch[step == 3]; };
    bool any_wanted = g.d_query != nullptr;
    for (int id = 0; id < kNumSegments; ++id) {
      any_wanted = any_wanted || g.d_key[id] != nullptr || g.d_value[id] != nullptr;
    }
    for (g.first_sample = 0; g.first_sample < p.batch; g.first_sample += group) {
      g.samples = std::min(group, p.batch - g.first_sample);
      const int64_t heads = g.samples * p.key_heads;
      // Rows do not know of each other: the parts may follow the number of threads.
      const int64_t parts = std::min(g.panels, std::max<int64_t>(1, 2 * threads / heads));
      for_each(heads * parts, threads, [&](int64_t item, int64_t worker) {
        const int64_t head = item / parts;
        const int64_t part = item % parts;
        kernel.attend(g, g.first_sample + head / p.key_heads, head % p.key_heads, g.panels * part / parts,
                      g.panels * (part + 1) / parts, own(1, worker));
      });
      for_each(g.samples * g.panels, threads, [&](int64_t item, int64_t worker) {
        kernel.differentiate_rule(g, g.first_sample + item / g.panels, item % g.panels, own(2, worker));
      });
      if (any_wanted) {
        const int64_t together = g.one_item ? g.samples : 1;
        for_each(heads / together, head_threads, [&](int64_t item, int64_t worker) {
          for (int64_t i = 0; i < together; ++i) {
            const int64_t sample = g.one_item ? i : item / p.key_heads;
            kernel.differentiate_head(g, g.first_sample + sample, item % p.key_heads, own(3, worker));
          }
        });
      }
      for (int64_t i = 0; i < g.samples * g.panels * 3; ++i) {
        const double x = kernel.acc_size == 8 ? static_cast<const double*>(g.settings_sums)[i]
                                              : static_cast<const float*>(g.settings_sums)[i];
        settings_sums[3 * (g.first_sample + i / (3 * g.panels)) + i % 3] += x;
      }
    }
    for (int i = 0; i < kNumSegments; ++i) {
      for (int kind = 0; kind < 2; ++kind) {
        const SegmentId id = kSegments[i];
        void* const out = (kind == 0 ? g.d_key : g.d_value)[id];
        void* const sum = (kind == 0 ? g.sum_key : g.sum_value)[id];
        if (sum != nullptr && sum != out) {
          kernel.narrow(sum, sums[id][kind].numel(), out);
        }
      }
    }
  }
  const Setting* given[3] = {&scale, &tau, &alpha};
  for (int i = 0; i < 3; ++i) {
    if (wanted[5 + i]) {
      set_settings(*given[i], settings_sums, i, &found[5 + i]);
    }
  }
  return {found[0], found[1], found[2], found[3], found[4], found[5], found[6], found[7], found[8], found[9]};
}

// The arguments of the schema of the gradient (nag_kernels/_ops.py): dL/dout, what is wanted, and those of the
// operation.
template <class Setting>
Gradients attention_backward(Tensor gradient, std::vector<bool> wanted, Tensor query, Tensor key_positive,
                             Tensor value_positive, Tensor key_negative, Tensor value_negative, Setting nag_scale,
                             Setting nag_tau, Setting nag_alpha, std::optional<Tensor> key_shared,
                             std::optional<Tensor> value_shared, std::optional<Tensor> mask_positive,
                             std::optional<Tensor> mask_negative, std::optional<Tensor> mask_shared,
                             std::optional<double> softmax_scale, double negative_logit_bias, std::string rule) {
  const KeySet sets[3] = {{"positive", &key_positive, &value_positive, pointer(mask_positive)},
                          {"negative", &key_negative, &value_negative, pointer(mask_negative)},
                          {"shared", pointer(key_shared), pointer(value_shared), pointer(mask_shared)}};
  return differentiate(query, sets, nag_scale, nag_tau, nag_alpha, softmax_scale, negative_logit_bias, rule, gradient,
                       wanted);
}

}  // namespace
}  // namespace nag

NAG_LIBRARY_IMPL(NAG_NAMESPACE, CPU, m) {
  m.impl("fused_guided_attention_backward", NAG_BOX((&nag::attention_backward<double>)));
  m.impl("fused_guided_attention_backward.tensor", NAG_BOX((&nag::attention_backward<nag::Tensor>)));
}
