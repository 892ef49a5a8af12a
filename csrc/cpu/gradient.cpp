// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Two operations of nag_kernels/gradient.py on float32 tensors that it has made, in parallel over rows that do not
// touch each other: so the bits do not depend on the number of threads.

#include "capability.h"
#include "entry.h"
#include "host.h"
#include "namespace.h"

namespace nag {
namespace {

constexpr int64_t kGrain = 32768;  // numbers of one thread at least

void expect(bool right, const char* op, const char* what) {
  if (!right) {
    refuse(op, what);
  }
}

// Contiguous float32 of any shape, taken as rows.
void exponentials(Tensor logits,   // [..., T], which become exp(logit - largest)
                  Tensor largest,  // [..., 1]
                  Tensor total,    // [..., 1]; written where find
                  bool find) {
  const char* const op = "exponentials_";
  for (const Tensor* x : {&logits, &largest, &total}) {
    expect(x->scalar_type() == ScalarType::Float && x->is_contiguous(), op, "tensors must be contiguous, in float32");
  }
  const int64_t length = logits.size(logits.dim() - 1);
  const int64_t rows = length == 0 ? 0 : logits.numel() / length;
  expect(length > 0 && largest.numel() == rows && total.numel() == rows, op, "there must be one number for each row");
  float* const numbers = static_cast<float*>(logits.mutable_data_ptr());
  float* const tops = static_cast<float*>(largest.mutable_data_ptr());
  float* const sums = static_cast<float*>(total.mutable_data_ptr());
  const GradientKernel& kernel = kernels().gradient;
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kGrain / length), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      kernel.exponentials_of_row(numbers + row * length, length, find, tops + row, sums + row);
    }
  });
}

void formula_backward(Tensor gradient, Tensor positive, Tensor negative,  // [H, R, D], unit last stride
                      Tensor d_positive, Tensor d_negative,               // [H, R, D], contiguous
                      Tensor deltas,                                      // [2, H, R], contiguous
                      Tensor d_settings,                                  // [R, 3], contiguous
                      double nag_scale, double nag_tau, double nag_alpha, std::string rule) {
  const char* const op = "formula_backward";
  for (const Tensor* x : {&gradient, &positive, &negative, &d_positive, &d_negative}) {
    expect(x->scalar_type() == ScalarType::Float && x->dim() == 3 && x->stride(2) == 1, op,
           "tensors must be [H, R, D] with rows of D numbers, in float32");
    for (int64_t i = 0; i < 3; ++i) {
      expect(x->size(i) == gradient.size(i), op, "tensors must have one shape");
    }
  }
  for (const Tensor* x : {&d_positive, &d_negative, &deltas, &d_settings}) {
    expect(x->scalar_type() == ScalarType::Float && x->is_contiguous(), op, "what is written must be contiguous");
  }
  const int64_t heads = gradient.size(0), rows = gradient.size(1), size = gradient.size(2);
  expect(deltas.numel() == 2 * heads * rows && d_settings.numel() == 3 * rows, op,
         "deltas are [2, H, R], settings [R, 3]");
  expect(rule != "vsf", op, "vsf has no formula");
  FormulaToken first;
  first.gradient = static_cast<const float*>(gradient.const_data_ptr());
  first.positive = static_cast<const float*>(positive.const_data_ptr());
  first.negative = static_cast<const float*>(negative.const_data_ptr());
  first.d_positive = static_cast<float*>(d_positive.mutable_data_ptr());
  first.d_negative = static_cast<float*>(d_negative.mutable_data_ptr());
  first.deltas = static_cast<float*>(deltas.mutable_data_ptr());
  first.d_settings = static_cast<float*>(d_settings.mutable_data_ptr());
  first.gradient_stride = gradient.stride(0);
  first.positive_stride = positive.stride(0);
  first.negative_stride = negative.stride(0);
  first.d_stride = rows * size;
  first.delta_stride = rows;
  first.heads = heads;
  first.size = size;
  first.rule = kernel_rule(rule);
  first.settings = {nag_scale, nag_tau, nag_alpha};
  const int64_t gradient_row = gradient.stride(1), positive_row = positive.stride(1), negative_row = negative.stride(1);
  const GradientKernel& kernel = kernels().gradient;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, heads * size));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      FormulaToken token = first;
      token.gradient += row * gradient_row;
      token.positive += row * positive_row;
      token.negative += row * negative_row;
      token.d_positive += row * size;
      token.d_negative += row * size;
      token.deltas += row;
      token.d_settings += 3 * row;
      kernel.formula_of_token(token);
    }
  });
}

}  // namespace
}  // namespace nag

NAG_LIBRARY_FRAGMENT(NAG_CPU_NAMESPACE, m) {
  m.def("exponentials_(Tensor(a!) logits, Tensor(b!) largest, Tensor(c!) total, bool find) -> ()");
  m.def(
      "formula_backward(Tensor gradient, Tensor positive, Tensor negative, Tensor(a!) d_positive, "
      "Tensor(b!) d_negative, Tensor(c!) deltas, Tensor(d!) d_settings, float nag_scale, float nag_tau, "
      "float nag_alpha, str rule) -> ()");
}

NAG_LIBRARY_IMPL(NAG_CPU_NAMESPACE, CPU, m) {
  m.impl("exponentials_", NAG_BOX(&nag::exponentials));
  m.impl("formula_backward", NAG_BOX(&nag::formula_backward));
}
