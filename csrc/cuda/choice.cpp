// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// nag:: for CUDA tensors where this library is loaded. A call for which nag_kernels/gpu.py has once chosen one of its
// plans on the same device is served here and meets no Python, whose check and choice would take several times as long
// as all of this (docs/gpu.md); so small layers are not held up. Every other call goes to nag_gpu::, the same
// operations in Python: so tables, verdicts and what a device cannot run are asked in one place.

#include "choice.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "entry.h"
#include "launch.h"
#include "namespace.h"
#include "operations.h"

namespace nag {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

constexpr int kMostDevices = 64;  // calls on one beyond go to Python

struct Device {
  RememberedCalls attention;
  std::atomic<bool> guidance = false;
};

Device devices[kMostDevices];
thread_local bool paused = false;

// Null beyond kMostDevices. A CPU, in the tests, is device 0.
Device* device_at(int64_t index) { return index < kMostDevices ? &devices[std::max<int64_t>(index, 0)] : nullptr; }

void remember(int64_t device, std::vector<int64_t> call, std::string form) {
  CallFacts facts;
  if (call.size() != facts.size()) {
    refuse("remember", "a call has ", facts.size(), " numbers, got ", call.size());
  }
  std::copy(call.begin(), call.end(), facts.begin());
  if (Device* const found = device_at(device); found != nullptr) {
    found->attention.remember(facts, form);
  }
}

void allow_guidance(int64_t device) {
  if (Device* const found = device_at(device); found != nullptr) {
    found->guidance = true;
  }
}

bool pause(bool wanted) {
  const bool before = paused;
  paused = wanted;
  return before;
}

// The form that serves a call, or null where Python is to say.
const std::string* form_of(const Tensor& query, const KeySet (&sets)[3], const std::string& rule) {
  const Device* const device = device_at(query.get_device_index());
  const ScalarType dtype = query.scalar_type();
  if (paused || device == nullptr || query.dim() != 4 || (dtype != ScalarType::Half && dtype != ScalarType::BFloat16)) {
    return nullptr;
  }
  for (const KeySet& set : sets) {
    if (set.key != nullptr && set.key->dim() != 4) {
      return nullptr;
    }
  }
  const auto& [positive, negative, shared] = sets;
  return device->attention.find({dtype == ScalarType::Half, query.size(1), query.size(2), query.size(3),
                                 positive.key->size(1), negative.key->size(1),
                                 shared.key == nullptr ? 0 : shared.key->size(1), positive.key->size(2),
                                 shared.mask != nullptr, static_cast<int64_t>(row_rule(rule))});
}

template <class Setting>
constexpr const char* kOverload = "";
template <>
constexpr const char* kOverload<Tensor> = "tensor";

// No exception comes through the stable ABI, only that there was one; nag_kernels.functional raises it again.
template <class Setting, size_t kCount>
Tensor by_python(const char* op, std::array<StableIValue, kCount> stack) {
  const std::string name = std::string(NAG_STRING(NAG_GPU_NAMESPACE) "::") + op;
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
    if (const std::string* const form = form_of(query, sets, rule); form != nullptr) {
      return attend(query, sets, scale, tau, alpha, softmax_scale, bias, rule, *form);
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
  const Device* const device = device_at(positive.get_device_index());
  if (!paused && device != nullptr && device->guidance && positive.scalar_type() != ScalarType::Double) {
    return guide(positive, negative, nag_scale, nag_tau, nag_alpha, rule);
  }
  check_guidance(positive, negative, nag_scale, nag_tau, nag_alpha, rule);
  return by_python<Setting>("guidance", std::array{from(positive), from(negative), from(nag_scale), from(nag_tau),
                                                   from(nag_alpha), from(rule)});
}

}  // namespace
}  // namespace nag

NAG_LIBRARY_FRAGMENT(NAG_CUDA_NAMESPACE, m) {
  m.def("remember(int device, int[] call, str form) -> ()");  // call: CallFacts
  m.def("allow_guidance(int device) -> ()");
  m.def("pause(bool wanted) -> bool");  // in this thread Python serves every call; returns what held before
}

NAG_LIBRARY_IMPL(NAG_CUDA_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("remember", NAG_BOX(&nag::remember));
  m.impl("allow_guidance", NAG_BOX(&nag::allow_guidance));
  m.impl("pause", NAG_BOX(&nag::pause));
}

NAG_LIBRARY_IMPL(NAG_NAMESPACE, NAG_CUDA_KEY, m) {
  m.impl("fused_guided_attention", NAG_BOX((&nag::call_attention<nag::Chosen, double>)));
  m.impl("fused_guided_attention.tensor", NAG_BOX((&nag::call_attention<nag::Chosen, nag::Tensor>)));
  m.impl("guidance", NAG_BOX(&nag::guidance_chosen<double>));
  m.impl("guidance.tensor", NAG_BOX(&nag::guidance_chosen<nag::Tensor>));
}
