// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// A module for the tests alone, built on demand (tests/emulated.py): the CUDA kernels run thread by thread on the CPU,
// and the headers that CPU and CUDA share. It never ships.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "forms_emulated.h"
#include "guidance_kernel.cuh"

namespace py = pybind11;
using namespace nag;

namespace {

using Strides = std::array<int64_t, 3>;
using Ranges = std::vector<std::pair<uintptr_t, uintptr_t>>;  // address, bytes

template <class T = void>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void set_ranges(const Ranges& readable, const Ranges& writable) {
  const auto convert = [](const Ranges& ranges) {
    Ranges found;
    for (const auto& range : ranges) {
      found.emplace_back(range.first, range.first + range.second);
    }
    return found;
  };
  device::machine.readable = convert(readable);
  device::machine.writable = convert(writable);
}

Settings settings(const std::array<uintptr_t, 3>& tensors, const std::array<int64_t, 3>& strides,
                  const std::array<float, 3>& numbers) {
  Settings s{};
  for (int i = 0; i < 3; ++i) {
    s.tensor[i] = pointer<const float>(tensors[i]);
    s.stride[i] = strides[i];
    s.number[i] = numbers[i];
  }
  return s;
}

Segment segment(uintptr_t key, uintptr_t value, uintptr_t mask, const Strides& key_stride, const Strides& value_stride,
                const std::array<int64_t, 2>& mask_stride, int length, float bias) {
  Segment s{pointer(key), pointer(value), pointer<const uint8_t>(mask), {}, {}, {}, length, bias};
  std::copy(key_stride.begin(), key_stride.end(), s.key_stride);
  std::copy(value_stride.begin(), value_stride.end(), s.value_stride);
  std::copy(mask_stride.begin(), mask_stride.end(), s.mask_stride);
  return s;
}

AttentionParams attention_params(uintptr_t query, const Strides& query_stride, uintptr_t out, uintptr_t positive,
                                 uintptr_t negative, const std::array<int64_t, 5>& shape, int repeats, float scale,
                                 int rule, bool keep, const Settings& set, const std::vector<Segment>& segments) {
  AttentionParams p{};
  p.query = pointer(query);
  std::copy(query_stride.begin(), query_stride.end(), p.query_stride);
  p.out = pointer(out);
  p.positive = pointer<float>(positive);
  p.negative = pointer<float>(negative);
  p.batch = shape[0];
  p.tokens = shape[1];
  p.heads = static_cast<int>(shape[2]);
  p.size = static_cast<int>(shape[3]);
  p.repeats = repeats;
  p.scale = scale;
  p.rule = static_cast<RowRule>(rule);
  p.keep = keep;
  p.settings = set;
  std::copy(segments.begin(), segments.end(), p.segment);
  return p;
}

template <class In, class Out>
void run_guidance(const GuidanceParams& p, int threads, int vector, int order) {
  device::launch(p.rows, threads, kGuidanceSharedBytes, order, false,
                 [&] { vector == 8 ? guidance_kernel<In, Out, 8>(p) : guidance_kernel<In, Out, 1>(p); });
}

void guidance(const std::string& types, uintptr_t positive, uintptr_t negative, uintptr_t out,
              const std::array<int64_t, 5>& shape, int rule, const Settings& set, int threads, int vector, int order) {
  GuidanceParams p{
      pointer(positive),          pointer(negative),          pointer(out), shape[0], shape[1], shape[2], shape[3],
      static_cast<int>(shape[4]), static_cast<RowRule>(rule), set};
  using namespace device;
  if (types == "f32 f32") {
    run_guidance<Float, Float>(p, threads, vector, order);
  } else if (types == "bf16 bf16") {
    run_guidance<BFloat16, BFloat16>(p, threads, vector, order);
  } else if (types == "f16 f16") {
    run_guidance<Half, Half>(p, threads, vector, order);
  } else if (types == "f32 bf16") {
    run_guidance<Float, BFloat16>(p, threads, vector, order);
  } else if (types == "f32 f16") {
    run_guidance<Float, Half>(p, threads, vector, order);
  } else {
    throw std::invalid_argument(types);
  }
}

}  // namespace

PYBIND11_MODULE(nag_emulated, m) {
  py::class_<Settings>(m, "Settings", py::module_local()).def(py::init(&settings));
  py::class_<Segment>(m, "Segment", py::module_local()).def(py::init(&segment));
  py::class_<AttentionParams>(m, "AttentionParams", py::module_local())
      .def(py::init(&attention_params))
      .def_property_readonly("address", [](const AttentionParams& p) { return reinterpret_cast<uintptr_t>(&p); });
  m.def("set_ranges", &set_ranges, "Which memory the kernels may read, and which they may write: (address, bytes).");
  m.def("text_attention", [](const AttentionParams& p, bool half, int tiles, int order, bool early) {
    if (half) {
      tiles == 2 ? text_of<device::Half, 2>(p, order, early) : text_of<device::Half, 1>(p, order, early);
    } else {
      tiles == 2 ? text_of<device::BFloat16, 2>(p, order, early) : text_of<device::BFloat16, 1>(p, order, early);
    }
  });
  m.def("branches", [](const AttentionParams& p, bool half, int order, bool early) {
    half ? branches_of<device::Half>(p, order, early) : branches_of<device::BFloat16>(p, order, early);
  });
  m.def("cluster", &cluster);
  m.def("guidance", &guidance);

  m.def("factors", [](float positive, float guided, float scale, float tau, float alpha) {
    float a;
    float b;
    nag_factors(positive, guided, scale, tau, alpha, 1.0f, &a, &b);
    return std::pair(a, b);
  });
  m.def("softmax", [](const std::vector<std::vector<float>>& steps) {  // maximum and sum after each step's logits
    SoftmaxState state = empty_state();
    std::vector<float> fades;
    for (const auto& logits : steps) {
      float top = no_key();
      for (const float x : logits) {
        top = device::larger(top, x);
      }
      fades.push_back(softmax_raise(&state, top));
      for (const float x : logits) {
        state.sum += exp2_of(x - softmax_base(state.maximum));
      }
    }
    return std::tuple(state.maximum, state.sum, fades, softmax_weight(state));
  });
  m.def("merge", [](std::pair<float, float> first, std::pair<float, float> second) {
    float x;
    float y;
    softmax_merge({first.first, first.second}, {second.first, second.second}, &x, &y);
    return std::pair(x, y);
  });
  m.def("text_shared_bytes", &text_shared_bytes);
  m.def("cluster_plan", [](int heads, int size) {  // blocks, heads of each, slots, bytes
    const ClusterPlan plan = cluster_plan(heads, size);
    return std::tuple(plan.blocks, plan.heads, plan.slots, plan.shared_bytes);
  });
  m.def("branch_shared_bytes", [] {
    return std::vector<int>{BranchTile<64>::kSharedBytes, BranchTile<96>::kSharedBytes, BranchTile<128>::kSharedBytes,
                            BranchTile<192>::kSharedBytes, BranchTile<256>::kSharedBytes};
  });
  m.attr("TEXT_SIZES") = std::vector<int>(std::begin(kTextSizes), std::end(kTextSizes));
  m.attr("BRANCH_SIZES") = std::vector<int>(std::begin(kBranchSizes), std::end(kBranchSizes));
  m.attr("TEXT_MAX_LENGTH") = kTextMaxLength;
  m.attr("TEXT_WARPS") = kTextWarps;
  m.attr("CLUSTER_MAX_SIZE") = kClusterMaxSize;
  m.def("matrix_descriptor", &device::matrix_descriptor);
}
