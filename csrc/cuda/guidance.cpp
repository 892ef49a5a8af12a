// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Host half of nag_cuda::guidance: check, rows, launch.

#include "entry.h"
#include "launch.h"
#include "namespace.h"
#include "operations.h"

namespace nag {
namespace {

// [N, C] of a tensor [..., C] without a copy where its leading dimensions are evenly apart.
Tensor as_rows(const Tensor& x, int64_t* row_stride) {
  const int64_t last = x.dim() - 1;
  bool even = x.stride(last) == 1 || x.size(last) <= 1;
  int64_t stride = 0;
  int64_t rows = 1;
  for (int64_t i = last - 1; i >= 0; --i) {
    if (x.size(i) > 1) {
      stride = rows == 1 ? x.stride(i) : stride;
      even = even && x.stride(i) == stride * rows;
      rows *= x.size(i);
    }
  }
  if (even) {
    *row_stride = stride;
    return x;
  }
  *row_stride = x.size(last);
  return torch::stable::contiguous(x);
}

}  // namespace

template <class Setting>
Tensor guide(const Tensor& positive, const Tensor& negative, const Setting& scale, const Setting& tau,
             const Setting& alpha, const std::string& rule) {
  check_guidance(positive, negative, scale, tau, alpha, rule);
  const ScalarType dtype = positive.scalar_type();
  if (dtype == ScalarType::Double) {
    refuse("guidance", "cuda cannot run float64");
  }
  Tensor out = new_tensor(positive, shape_of(positive), dtype);
  if (out.numel() == 0) {
    return out;
  }
  if (const std::string why = device_refusal(positive.get_device_index(), "guidance"); !why.empty()) {
    refuse("guidance", "cuda cannot run: ", why);
  }
  const Launch launch(positive);
  GuidanceParams p{};
  const Tensor plus = as_rows(positive, &p.positive_row);
  const Tensor minus = as_rows(negative, &p.negative_row);
  const int64_t channels = out.size(out.dim() - 1);
  if (channels > 0x7fffffff / 2) {
    refuse("guidance", "cuda cannot run ", channels, " channels");
  }
  p.positive = plus.const_data_ptr();
  p.negative = minus.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.channels = static_cast<int>(channels);
  p.rows = out.numel() / channels;
  p.rows_per_sample = out.dim() > 1 ? p.rows / out.size(0) : p.rows;
  p.rule = row_rule(rule);
  p.settings = kernel_settings(scale, tau, alpha);
  const auto even = [&](const Tensor& x, int64_t stride) {
    return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 && stride % 8 == 0;
  };
  const bool vectors = channels % 8 == 0 && even(plus, p.positive_row) && even(minus, p.negative_row);
  count(Counter::kGuidance);
  const Element element = element_of(dtype);
  Launch::check(launch_guidance(launch.target(), p, element, element, vectors));
  return out;
}

template Tensor guide(const Tensor&, const Tensor&, const double&, const double&, const double&, const std::string&);
template Tensor guide(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const std::string&);

namespace {

template <class Setting>
Tensor guidance_cuda(Tensor positive,                                        // [..., C]
                     Tensor negative,                                        // [..., C]
                     Setting nag_scale, Setting nag_tau, Setting nag_alpha,  // numbers, or float32 [] or [B]
                     std::string rule) {
  return guide(positive, negative, nag_scale, nag_tau, nag_alpha, rule);
}

}  // namespace
}  // namespace nag

NAG_LIBRARY_FRAGMENT(NAG_CUDA_NAMESPACE, m) {
  m.def(
      "guidance(Tensor positive, Tensor negative, float nag_scale, float nag_tau, float nag_alpha, str rule) -> "
      "Tensor");
  m.def(
      "guidance.tensor(Tensor positive, Tensor negative, Tensor nag_scale, Tensor nag_tau, Tensor nag_alpha, str rule) "
      "-> Tensor");
}

NAG_LIBRARY_IMPL(NAG_CUDA_NAMESPACE, NAG_CUDA_KEY, m) {
  m.impl("guidance", NAG_BOX(&nag::guidance_cuda<double>));
  m.impl("guidance.tensor", NAG_BOX(&nag::guidance_cuda<nag::Tensor>));
}
