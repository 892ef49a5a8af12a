// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// nag:: for CUDA tensors where this library is loaded. A call whose row in nag_kernels/gpu_choices.csv begins with one
// of its plans is served here and meets no Python, whose check and choice would take several times as long as all of
// this (docs/gpu.md); so small layers are not held up. Every other call goes to nag_gpu::, the same operations in
// Python.

#include "choice.h"

#include <torch/csrc/stable/library.h>

#include <array>
#include <atomic>
#include <optional>
#include <vector>

#include "launch.h"
#include "operations.h"

namespace nag {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

// None until Python has served the first call. A table is never freed: another thread may read it.
std::atomic<const std::vector<Choice>*> choices = nullptr;
thread_local bool paused = false;

void set_choices(std::vector<int64_t> rows) { choices = new std::vector<Choice>(read_choices(rows)); }

bool pause(bool wanted) {
  const bool before = paused;
  paused = wanted;
  return before;
}

// The form that serves a call, or "" where Python is to say.
std::string form_of(const Tensor& query, const KeySet (&sets)[3]) {
  const std::vector<Choice>* const rows = choices;
  if (paused || rows == nullptr || query.dim() != 4) {
    return "";
  }
  for (const KeySet& set : sets) {
    if (set.key != nullptr && set.key->dim() != 4) {
      return "";
    }
  }
  const int64_t text = std::max(sets[0].key->size(1), sets[1].key->size(1));
  const int64_t shared = sets[2].key == nullptr ? 0 : sets[2].key->size(1);
  const std::string form = first_form(*rows, chip_of(query), query.size(1), query.size(3), text, shared);
  return form.empty() || !refusal(query, sets, form).empty() ? "" : form;
}

template <class Setting>
constexpr const char* kOverload = "";
template <>
constexpr const char* kOverload<Tensor> = "tensor";

// No exception comes through the stable ABI, only that there was one; nag_kernels.functional raises it again.
template <class Setting, size_t kCount>
Tensor by_python(const char* op, std::array<StableIValue, kCount> stack) {
  const std::string name = std::string("nag_gpu::") + op;
  if (torch_call_dispatcher(name.c_str(), kOverload<Setting>, stack.data(), TORCH_ABI_VERSION) != 0) {
    refuse(op, "the Python that serves this call failed; nag_kernels.", op, " in place of torch.ops.nag says how");
  }
  return to<Tensor>(stack[0]);
}

std::optional<Tensor> optional(const Tensor* x) { return x == nullptr ? std::nullopt : std::optional<Tensor>(*x); }

struct Chosen {
  template <class Setting>
  static Tensor run(const Tensor& query, const KeySet (&sets)[3], const Setting& scale, const Setting& tau,
                    const Setting& alpha, const std::optional<double>& softmax_scale, double bias,
                    const std::string& rule) {
    const std::string form = form_of(query, sets);
    if (!form.empty()) {
      return attend(query, sets, scale, tau, alpha, softmax_scale, bias, rule, form);
    }
    check_attention(query, sets, scale, tau, alpha, softmax_scale, bias, rule);
    const auto& [positive, negative, shared] = sets;
    return by_python<Setting>(
        "fused_guided_attention",
        std::array{from(query), from(*positive.key), from(*positive.value), from(*negative.key), from(*negative.value),
                   from(scale), from(tau), from(alpha), from(optional(shared.key)), from(optional(shared.value)),
                   from(optional(positive.mask)), from(optional(negative.mask)), from(optional(shared.mask)),
                   from(softmax_scale), from(bias), from(rule)});
  }
};

template <class Setting>
Tensor guidance_chosen(Tensor positive, Tensor negative, Setting nag_scale, Setting nag_tau, Setting nag_alpha,
                       std::string rule) {
  if (!paused && positive.scalar_type() != ScalarType::Double) {  // every chip takes every other call
    return guide(positive, negative, nag_scale, nag_tau, nag_alpha, rule);
  }
  check_guidance(positive, negative, nag_scale, nag_tau, nag_alpha, rule);
  return by_python<Setting>("guidance", std::array{from(positive), from(negative), from(nag_scale), from(nag_tau),
                                                   from(nag_alpha), from(rule)});
}

}  // namespace
}  // namespace nag

STABLE_TORCH_LIBRARY_FRAGMENT(nag_cuda, m) {
  m.def("set_choices(int[] rows) -> ()");  // six numbers a row: Choice
  m.def("pause(bool wanted) -> bool");     // in this thread Python serves every call; returns what held before
}

STABLE_TORCH_LIBRARY_IMPL(nag_cuda, CompositeExplicitAutograd, m) {
  m.impl("set_choices", TORCH_BOX(&nag::set_choices));
  m.impl("pause", TORCH_BOX(&nag::pause));
}

STABLE_TORCH_LIBRARY_IMPL(nag, NAG_CUDA_KEY, m) {
  m.impl("fused_guided_attention", TORCH_BOX((&nag::call_attention<nag::Chosen, double>)));
  m.impl("fused_guided_attention.tensor", TORCH_BOX((&nag::call_attention<nag::Chosen, nag::Tensor>)));
  m.impl("guidance", TORCH_BOX(&nag::guidance_chosen<double>));
  m.impl("guidance.tensor", TORCH_BOX(&nag::guidance_chosen<nag::Tensor>));
}
