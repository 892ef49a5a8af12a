// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Host half of nag::guidance on the CPU: check, then the rows in parallel.

#include "capability.h"
#include "entry.h"
#include "host.h"
#include "namespace.h"

namespace nag {
namespace {

// Elements per thread below which a second thread does not pay.
constexpr int64_t kGrain = 32768;

// Byte offset of a row: its indices in the leading dimensions times their strides.
int64_t row_offset(const Tensor& x, int64_t row, int64_t element_size) {
  int64_t offset = 0;
  for (int64_t i = x.dim() - 2; i >= 0; --i) {
    offset += row % x.size(i) * x.stride(i);
    row /= x.size(i);
  }
  return offset * element_size;
}

template <class Setting>
Tensor guidance_cpu(Tensor positive_given,                                  // [..., C]
                    Tensor negative_given,                                  // [..., C]
                    Setting nag_scale, Setting nag_tau, Setting nag_alpha,  // numbers, or float32 [] or [B]
                    std::string rule) {
  check_guidance(positive_given, negative_given, nag_scale, nag_tau, nag_alpha, rule);
  const GuidanceKernel& kernel = kernels().guidance[static_cast<int>(kernel_dtype(positive_given.scalar_type()))];
  count_call(Op::kGuidance, kernel.path);

  Tensor out = new_tensor(positive_given, shape_of(positive_given), positive_given.scalar_type());
  if (out.numel() == 0) {
    return out;
  }
  const Tensor positive = unit_last_stride(positive_given);
  const Tensor negative = unit_last_stride(negative_given);
  const std::vector<Settings> settings = read_settings(nag_scale, nag_tau, nag_alpha);
  const int64_t channels = out.size(out.dim() - 1);
  const int64_t rows = out.numel() / channels;
  const int64_t rows_per_setting = rows / static_cast<int64_t>(settings.size());
  const int64_t element_size = static_cast<int64_t>(out.element_size());
  const Rule row_rule = kernel_rule(rule);
  const char* positive_data = static_cast<const char*>(positive.const_data_ptr());
  const char* negative_data = static_cast<const char*>(negative.const_data_ptr());
  char* out_data = static_cast<char*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kGrain / channels), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      kernel.run_row(positive_data + row_offset(positive, row, element_size),
                     negative_data + row_offset(negative, row, element_size), out_data + row * channels * element_size,
                     channels, row_rule, settings[row / rows_per_setting]);
    }
  });
  return out;
}

}  // namespace
}  // namespace nag

NAG_LIBRARY_IMPL(NAG_NAMESPACE, CPU, m) {
  m.impl("guidance", NAG_BOX(&nag::guidance_cpu<double>));
  m.impl("guidance.tensor", NAG_BOX(&nag::guidance_cpu<nag::Tensor>));
}
