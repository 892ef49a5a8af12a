// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Host half of nag_cuda::fused_guided_attention: check, parameters, and one launch (forms "text", "cluster") or two
// (form "branches", then the blend). Who calls has chosen the form (gpu.py, choice.cpp); what no kernel takes is
// refused.

#include <cmath>
#include <optional>

#include "entry.h"
#include "launch.h"
#include "namespace.h"
#include "operations.h"
#include "tensor_map.h"
#include "tile_size.h"

namespace nag {
namespace {

constexpr const char* kOp = "fused_guided_attention";
constexpr double kLog2e = 1.4426950408889634;

template <int kCount>
void read_strides(const Tensor& x, int64_t batch, int64_t (&strides)[kCount]) {
  for (int i = 0; i < kCount; ++i) {
    strides[i] = i == 0 && x.size(0) != batch ? 0 : x.stride(i);
  }
}

// `kept` holds copies of what was not aligned.
Segment make_segment(const KeySet& set, int64_t batch, double bias, std::vector<Tensor>* kept) {
  Segment s{};
  if (set.key == nullptr || set.key->size(1) == 0) {
    return s;
  }
  const Tensor& key = kept->emplace_back(aligned(*set.key));
  const Tensor& value = kept->emplace_back(aligned(*set.value));
  s.key = key.const_data_ptr();
  s.value = value.const_data_ptr();
  read_strides(key, batch, s.key_stride);
  read_strides(value, batch, s.value_stride);
  if (set.mask != nullptr) {
    s.mask = static_cast<const uint8_t*>(set.mask->const_data_ptr());
    read_strides(*set.mask, batch, s.mask_stride);
  }
  s.length = static_cast<int>(key.size(1));
  s.bias = static_cast<float>(kernel_bias(bias) * kLog2e);
  return s;
}

template <class... Parts>
std::string said(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  return message.str();
}

std::string cluster_refusal(const Tensor& query) {
  const int64_t size = query.size(3);
  if (query.scalar_type() != ScalarType::BFloat16) {
    return "the cluster kernel takes bfloat16";
  }
  if (size > kClusterMaxSize) {
    return said("the cluster kernel takes head sizes up to ", kClusterMaxSize);
  }
  if (const int chip = chip_of(query); chip != 90 || !cluster_is_built()) {
    return said("the cluster kernel is machine code of sm_90a, ",
                chip == 90 ? "for which this library was not compiled" : "and this GPU has another");
  }
  if (cluster_plan(static_cast<int>(query.size(2)), static_cast<int>(size)).blocks == 0) {
    return said("the cluster kernel has no room for ", query.size(2), " heads of ", size);
  }
  return {};
}

}  // namespace

std::string refusal(const Tensor& query, const KeySet (&sets)[3], const std::string& form) {
  const ScalarType dtype = query.scalar_type();
  const int64_t size = query.size(3);
  if (dtype != ScalarType::BFloat16 && dtype != ScalarType::Half) {
    return said("cuda cannot run ", dtype_name(dtype), ": its matrix units take bfloat16 and float16");
  }
  if (size % 8 != 0 || size > kBranchMaxSize) {
    return said("cuda cannot run head size ", size, ": it takes multiples of 8 up to ", kBranchMaxSize);
  }
  for (const KeySet& set : sets) {
    if (set.key != nullptr && set.key->size(1) > 0x3fffffff) {
      return said("cuda cannot run ", set.key->size(1), " keys");
    }
  }
  if (form == "branches") {
    return device_refusal(query.get_device_index(), form);
  }
  if (form == "cluster") {
    const std::string why = cluster_refusal(query);
    return why.empty() ? device_refusal(query.get_device_index(), form) : why;
  }
  if (form != "text") {
    return said("form must be 'text', 'branches' or 'cluster', got '", form, "'");
  }
  if (sets[2].key != nullptr && sets[2].key->size(1) > 0) {
    return "the one-launch kernel takes no shared keys";
  }
  if (size > kTextMaxSize || sets[0].key->size(1) > kTextMaxLength || sets[1].key->size(1) > kTextMaxLength) {
    return said("the one-launch kernel takes head sizes up to ", kTextMaxSize, " and texts up to ", kTextMaxLength);
  }
  return device_refusal(query.get_device_index(), form);
}

template <class Setting>
Tensor attend(const Tensor& query_given, const KeySet (&sets)[3], const Setting& scale, const Setting& tau,
              const Setting& alpha, const std::optional<double>& softmax_scale, double bias, const std::string& rule,
              const std::string& form) {
  check_attention(query_given, sets, scale, tau, alpha, softmax_scale, bias, rule);
  if (const std::string why = refusal(query_given, sets, form); !why.empty()) {
    refuse(kOp, why);
  }
  const ScalarType dtype = query_given.scalar_type();
  const bool half = dtype == ScalarType::Half;
  Tensor out = new_tensor(query_given, shape_of(query_given), dtype);
  if (out.numel() == 0) {
    return out;
  }
  const Launch launch(query_given);
  std::vector<Tensor> kept;
  kept.reserve(7);
  const Tensor& query = kept.emplace_back(aligned(query_given));
  AttentionParams p{};
  p.batch = query.size(0);
  p.tokens = query.size(1);
  p.heads = static_cast<int>(query.size(2));
  p.size = static_cast<int>(query.size(3));
  p.repeats = p.heads / static_cast<int>(sets[0].key->size(2));
  p.query = query.const_data_ptr();
  read_strides(query, p.batch, p.query_stride);
  p.out = out.mutable_data_ptr();
  p.scale = static_cast<float>(softmax_scale.value_or(1.0 / std::sqrt(static_cast<double>(p.size))) * kLog2e);
  p.rule = row_rule(rule);
  p.settings = kernel_settings(scale, tau, alpha);
  p.segment[kPositive] = make_segment(sets[0], p.batch, 0.0, &kept);
  p.segment[kNegative] = make_segment(sets[1], p.batch, bias, &kept);
  p.segment[kShared] = make_segment(sets[2], p.batch, 0.0, &kept);
  if (form == "text") {
    count(Counter::kText);
    Launch::check(half ? launch_text_f16(launch.target(), p) : launch_text_bf16(launch.target(), p));
    return out;
  }
  if (form == "cluster") {
    const ClusterPlan plan = cluster_plan(p.heads, p.size);
    count(Counter::kCluster);
    Launch::check(launch_cluster(launch.target(), cluster_params(p, plan), plan.shared_bytes));
    return out;
  }

  const Tensor wide = new_tensor(query, {2, p.batch, p.tokens, p.heads, p.size}, ScalarType::Float);
  p.positive = static_cast<float*>(wide.mutable_data_ptr());
  p.negative = p.positive + out.numel();
  count(Counter::kBranches);
  Launch::check(half ? launch_branches_f16(launch.target(), p) : launch_branches_bf16(launch.target(), p));
  GuidanceParams blend{};
  blend.positive = p.positive;
  blend.negative = p.negative;
  blend.out = p.out;
  blend.channels = p.heads * p.size;
  blend.positive_row = blend.negative_row = blend.channels;
  blend.rows = p.batch * p.tokens;
  blend.rows_per_sample = p.tokens;
  blend.rule = p.rule;
  blend.settings = p.settings;
  Launch::check(launch_guidance(launch.target(), blend, Element::kFloat, element_of(dtype), true));
  return out;
}

template Tensor attend(const Tensor&, const KeySet (&)[3], const double&, const double&, const double&,
                       const std::optional<double>&, double, const std::string&, const std::string&);
template Tensor attend(const Tensor&, const KeySet (&)[3], const Tensor&, const Tensor&, const Tensor&,
                       const std::optional<double>&, double, const std::string&, const std::string&);

namespace {

struct Cuda {  // its schema has one argument more: "text", "cluster" or "branches"
  template <class... Arguments>
  static Tensor run(const Arguments&... arguments) {
    return attend(arguments...);
  }
};

}  // namespace
}  // namespace nag

#define NAG_SCHEMA(overload, setting)                                                                               \
  "fused_guided_attention" overload                                                                                 \
  "(Tensor query, Tensor key_positive, Tensor value_positive, Tensor key_negative, Tensor value_negative, " setting \
  " nag_scale, " setting " nag_tau, " setting                                                                       \
  " nag_alpha, Tensor? key_shared, Tensor? value_shared, Tensor? mask_positive, Tensor? mask_negative, "            \
  "Tensor? mask_shared, float? softmax_scale, float negative_logit_bias, str rule, str form) -> Tensor"

NAG_LIBRARY_FRAGMENT(NAG_CUDA_NAMESPACE, m) {
  m.def(NAG_SCHEMA("", "float"));
  m.def(NAG_SCHEMA(".tensor", "Tensor"));
}

NAG_LIBRARY_IMPL(NAG_CUDA_NAMESPACE, NAG_CUDA_KEY, m) {
  m.impl("fused_guided_attention", NAG_BOX((&nag::call_attention<nag::Cuda, double, std::string>)));
  m.impl("fused_guided_attention.tensor", NAG_BOX((&nag::call_attention<nag::Cuda, nag::Tensor, std::string>)));
}
