// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The whole check of nag_kernels/checks.py again, in the same order and with the same words, for raw calls through
// torch.ops that meet no Python. tests/ops/bad_inputs.py feeds one table to both.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace nag {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void refuse(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << "nag::" << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    case ScalarType::Float8_e4m3fn:
      return "float8_e4m3fn";
    case ScalarType::Float8_e5m2:
      return "float8_e5m2";
    default:
      return torch::headeronly::toString(dtype);
  }
}

inline std::string device_name(const Tensor& x) {
  const torch::stable::Device device = x.device();
  switch (device.type()) {
    case DeviceType::CPU:
      return "cpu";
    case DeviceType::CUDA:
      return "cuda:" + std::to_string(device.index());
    case DeviceType::Meta:
      return "meta";
    default:
      return "a device of another kind";
  }
}

inline std::string shape_name(const Tensor& x) {
  std::string name = "(";
  const int64_t dims = x.dim();
  for (int64_t i = 0; i < dims; ++i) {
    name += (i ? ", " : "") + std::to_string(x.size(i));
  }
  return name + ")";
}

// As Python's format "g" writes it.
inline std::string number_name(double x) {
  if (std::isnan(x)) {
    return "nan";
  }
  std::ostringstream text;
  text << x;
  return text.str();
}

inline bool same_device(const Tensor& x, const Tensor& like) {
  return x.device().type() == like.device().type() && x.get_device_index() == like.get_device_index();
}

inline bool same_shape(const Tensor& x, const Tensor& like) {
  if (x.dim() != like.dim()) {
    return false;
  }
  for (int64_t i = 0; i < x.dim(); ++i) {
    if (x.size(i) != like.size(i)) {
      return false;
    }
  }
  return true;
}

inline void check_dtype(const char* op, const char* name, const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  if (dtype != ScalarType::Float && dtype != ScalarType::Half && dtype != ScalarType::BFloat16 &&
      dtype != ScalarType::Double) {
    refuse(op, name, " must be float32, float16, bfloat16 or float64, got ", dtype_name(dtype));
  }
}

inline void check_device(const char* op, const std::string& name, const Tensor& x, const char* like_name,
                         const Tensor& like) {
  if (!same_device(x, like)) {
    refuse(op, name, " must be on ", device_name(like), " like ", like_name, ", got ", device_name(x));
  }
}

inline void check_like(const char* op, const std::string& name, const Tensor& x, const char* like_name,
                       const Tensor& like) {
  if (x.scalar_type() != like.scalar_type()) {
    refuse(op, name, " must be ", dtype_name(like.scalar_type()), " like ", like_name, ", got ",
           dtype_name(x.scalar_type()));
  }
  check_device(op, name, x, like_name, like);
}

inline void check_4d(const char* op, const std::string& name, const Tensor& x) {
  if (x.dim() != 4) {
    refuse(op, name, " must be 4-D (batch, length, heads, head size), got shape ", shape_name(x));
  }
}

// Where tensors of the other layout are likely: their number of heads lies where the length should, equal in both.
inline const char* layout_hint(const Tensor& query, const Tensor& key) {
  return query.size(1) == key.size(1)
             ? "; if these are (batch, heads, length, head size), call x.transpose(1, 2) on each"
             : "";
}

inline void check_rule(const char* op, const std::string& rule) {
  if (rule != "nag" && rule != "nasa" && rule != "vsf") {
    refuse(op, "rule must be 'nag', 'nasa' or 'vsf', got '", rule, "'");
  }
  if (rule == "vsf" && std::string_view(op) == "guidance") {
    refuse(op,
           "rule 'vsf' needs how much of one softmax each text takes, which two attention outputs do not hold; "
           "use fused_guided_attention");
  }
}

inline void check_settings(const char* op, double scale, double tau, double alpha, const std::string& rule,
                           const char* /*like_name*/, const Tensor& /*like*/) {
  check_rule(op, rule);
  if (!std::isfinite(scale)) {
    refuse(op, "nag_scale must be finite, got ", number_name(scale));
  }
  constexpr double largest = std::numeric_limits<float>::max();
  if (std::fabs(scale) > largest) {
    refuse(op, "nag_scale must be finite in float32, got ", number_name(scale));
  }
  if (!(tau > 0)) {
    refuse(op, "nag_tau must be above 0 (inf is no clip), got ", number_name(tau));
  }
  if (tau > largest && !std::isinf(tau)) {
    refuse(op, "nag_tau must be finite in float32, or inf (no clip), got ", number_name(tau));
  }
  if (!(alpha >= 0 && alpha <= 1)) {
    refuse(op, "nag_alpha must be between 0 and 1, got ", number_name(alpha));
  }
}

// The values of tensor settings are checked where they are set, on the host.
inline void check_settings(const char* op, const Tensor& scale, const Tensor& tau, const Tensor& alpha,
                           const std::string& rule, const char* like_name, const Tensor& like) {
  check_rule(op, rule);
  const int64_t samples = like.dim() > 1 ? like.size(0) : 1;
  const Tensor* settings[] = {&scale, &tau, &alpha};
  const char* names[] = {"nag_scale", "nag_tau", "nag_alpha"};
  for (int i = 0; i < 3; ++i) {
    const Tensor& x = *settings[i];
    if (x.scalar_type() != ScalarType::Float) {
      refuse(op, names[i], " must be float32, got ", dtype_name(x.scalar_type()));
    }
    check_device(op, names[i], x, like_name, like);
    if (x.dim() != 0 && (x.dim() != 1 || x.size(0) != samples)) {
      refuse(op, names[i], " must have shape () or (", samples, ",), got ", shape_name(x));
    }
  }
}

template <class Setting>
void check_guidance(const Tensor& positive, const Tensor& negative, const Setting& scale, const Setting& tau,
                    const Setting& alpha, const std::string& rule) {
  constexpr const char* op = "guidance";
  check_dtype(op, "positive", positive);
  if (positive.dim() < 1) {
    refuse(op, "positive must have at least 1 dimension (all heads of a token), got shape ()");
  }
  check_like(op, "negative", negative, "positive", positive);
  if (!same_shape(negative, positive)) {
    refuse(op, "negative must have shape ", shape_name(positive), " like positive, got ", shape_name(negative));
  }
  check_settings(op, scale, tau, alpha, rule, "positive", positive);
}

inline const Tensor* pointer(const std::optional<Tensor>& x) { return x.has_value() ? &*x : nullptr; }

// One text, or the shared keys, as the caller gave them.
struct KeySet {
  const char* part;
  const Tensor* key;
  const Tensor* value;
  const Tensor* mask;
};

// The logit bias within a fourth of what float32 holds: times log2(e), and with a logit added, it stays finite. Beyond
// that it makes no difference, as exp() of it is 0 (or of all else beside it).
inline double kernel_bias(double bias) {
  constexpr double kLargest = std::numeric_limits<float>::max() / 4;
  return std::clamp(bias, -kLargest, kLargest);
}

// nag::fused_guided_attention as the dispatcher calls it, with the arguments of its schema (nag_kernels/_ops.py) in
// their order. Run::run does the work and gets the keys in sets; what another schema has beyond these arguments comes
// last.
template <class Run, class Setting, class... More>
Tensor call_attention(Tensor query,                                           // [B, S, H, D]
                      Tensor key_positive,                                    // [B, Tp, Hkv, D]
                      Tensor value_positive,                                  // [B, Tp, Hkv, D]
                      Tensor key_negative,                                    // [B or 1, Tn, Hkv, D]
                      Tensor value_negative,                                  // [B or 1, Tn, Hkv, D]
                      Setting nag_scale, Setting nag_tau, Setting nag_alpha,  // numbers, or float32 [] or [B]
                      std::optional<Tensor> key_shared,                       // [B, Ts, Hkv, D]
                      std::optional<Tensor> value_shared,                     // [B, Ts, Hkv, D]
                      std::optional<Tensor> mask_positive,                    // bool [B or 1, Tp]
                      std::optional<Tensor> mask_negative,                    // bool [B or 1, Tn]
                      std::optional<Tensor> mask_shared,                      // bool [B or 1, Ts]
                      std::optional<double> softmax_scale, double negative_logit_bias, std::string rule, More... more) {
  const KeySet sets[3] = {{"positive", &key_positive, &value_positive, pointer(mask_positive)},
                          {"negative", &key_negative, &value_negative, pointer(mask_negative)},
                          {"shared", pointer(key_shared), pointer(value_shared), pointer(mask_shared)}};
  return Run::run(query, sets, nag_scale, nag_tau, nag_alpha, softmax_scale, negative_logit_bias, rule, more...);
}

template <class Setting>
void check_attention(const Tensor& query, const KeySet (&sets)[3], const Setting& scale, const Setting& tau,
                     const Setting& alpha, const std::optional<double>& softmax_scale, double bias,
                     const std::string& rule) {
  constexpr const char* op = "fused_guided_attention";
  check_4d(op, "query", query);
  check_dtype(op, "query", query);
  const int64_t batch = query.size(0);
  const int64_t heads = query.size(2);
  const int64_t size = query.size(3);
  if (size < 1) {
    refuse(op, "query must have a head size of at least 1, got ", size);
  }
  const KeySet& shared = sets[2];
  if ((shared.key == nullptr) != (shared.value == nullptr)) {
    refuse(op, "key_shared and value_shared must be given together, got only ",
           shared.key == nullptr ? "value_shared" : "key_shared");
  }
  check_4d(op, "key_positive", *sets[0].key);
  const int64_t key_heads = sets[0].key->size(2);
  if (key_heads < 1 || heads % key_heads != 0) {
    refuse(op, "key_positive must have a number of heads that divides query's ", heads, ", got ", key_heads,
           layout_hint(query, *sets[0].key));
  }
  for (const KeySet& set : sets) {
    const std::string part = set.part;
    if (set.key != nullptr) {
      for (const bool is_key : {true, false}) {
        const std::string name = (is_key ? "key_" : "value_") + part;
        const Tensor& x = is_key ? *set.key : *set.value;
        check_4d(op, name, x);
        check_like(op, name, x, "query", query);
        if (x.size(3) != size) {
          refuse(op, name, " must have head size ", size, " like query, got ", x.size(3));
        }
        if (x.size(2) != key_heads) {
          refuse(op, name, " must have ", key_heads, " heads like key_positive, got ", x.size(2),
                 layout_hint(query, x));
        }
        if (x.size(0) != batch && part != "negative") {
          refuse(op, name, " must have batch ", batch, " like query, got ", x.size(0));
        }
        if (x.size(0) != batch && x.size(0) != 1) {
          refuse(op, name, " must have batch ", batch, " or 1, got ", x.size(0));
        }
      }
      if (!same_shape(*set.value, *set.key)) {
        refuse(op, "value_", part, " must have shape ", shape_name(*set.key), " like key_", part, ", got ",
               shape_name(*set.value));
      }
    }
    if (set.mask != nullptr) {
      const std::string name = "mask_" + part;
      if (set.key == nullptr) {
        refuse(op, name, " must come with key_", part, ", got None for that");
      }
      const Tensor& mask = *set.mask;
      if (mask.scalar_type() != ScalarType::Bool) {
        refuse(op, name, " must be bool (False = not seen), got ", dtype_name(mask.scalar_type()));
      }
      check_device(op, name, mask, "query", query);
      const int64_t length = set.key->size(1);
      if (mask.dim() != 2 || (mask.size(0) != batch && mask.size(0) != 1) || mask.size(1) != length) {
        refuse(op, name, " must have shape (", batch, " or 1, ", length, "), got ", shape_name(mask));
      }
    }
  }
  if (softmax_scale.has_value() && !std::isfinite(*softmax_scale)) {
    refuse(op, "softmax_scale must be finite, got ", number_name(*softmax_scale));
  }
  if (!std::isfinite(bias)) {
    refuse(op, "negative_logit_bias must be finite, got ", number_name(bias));
  }
  if (shared.key == nullptr && bias != 0 && rule != "vsf") {
    refuse(op, "negative_logit_bias must be 0 without key_shared (it would cancel), got ", number_name(bias));
  }
  check_settings(op, scale, tau, alpha, rule, "query", query);
}

}  // namespace nag
