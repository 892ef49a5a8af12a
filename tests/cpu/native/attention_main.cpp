// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The portable kernels without torch or Python, for machines that only a cross compiler and an emulator reach: guided
// attention by the rules NAG and VSF and its gradient in float32, float16, bfloat16 and float64, and guidance in
// float32, against loops in double. Exits 0 if all are right.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cpu/params.h"

namespace {

constexpr int64_t kTokens = 19, kHeads = 2, kHeadSize = 13;
constexpr int64_t kLengths[3] = {101, 7, 12};  // shared, positive, negative
constexpr nag::Settings kSettings = {5.0, 2.5, 0.25};

uint32_t seed = 1;
double uniform() {  // -1 .. 1
  seed = seed * 1664525u + 1013904223u;
  return static_cast<double>(seed >> 8) / (1 << 23) - 1.0;
}

// Values with few bits, exact in every dtype.
std::vector<double> exact_values(int64_t count) {
  std::vector<double> values(count);
  for (double& x : values) {
    x = std::round(uniform() * 64) / 32;
  }
  return values;
}

// The bits of v, exact in the target type.
uint16_t bits16(double v, nag::DType dtype) {
  const float x = static_cast<float>(v);
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (dtype == nag::DType::kBFloat16) {
    return static_cast<uint16_t>(bits >> 16);
  }
  const uint16_t sign = (bits >> 16) & 0x8000;
  return v == 0 ? sign : static_cast<uint16_t>(sign | (((bits & 0x7fffffff) - (112u << 23)) >> 13));
}

double value16(uint16_t bits, nag::DType dtype) {
  if (dtype == nag::DType::kBFloat16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, 4);
    return x;
  }
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

size_t size_of(nag::DType dtype) { return dtype == nag::DType::kDouble ? 8 : dtype == nag::DType::kFloat ? 4 : 2; }

std::vector<char> stored(const std::vector<double>& values, nag::DType dtype) {
  std::vector<char> bytes(values.size() * size_of(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == nag::DType::kDouble) {
      std::memcpy(&bytes[i * 8], &values[i], 8);
    } else if (dtype == nag::DType::kFloat) {
      const float x = static_cast<float>(values[i]);
      std::memcpy(&bytes[i * 4], &x, 4);
    } else {
      const uint16_t x = bits16(values[i], dtype);
      std::memcpy(&bytes[i * 2], &x, 2);
    }
  }
  return bytes;
}

double read(const std::vector<char>& bytes, size_t i, nag::DType dtype) {
  if (dtype == nag::DType::kDouble) {
    double x;
    std::memcpy(&x, &bytes[i * 8], 8);
    return x;
  }
  if (dtype == nag::DType::kFloat) {
    float x;
    std::memcpy(&x, &bytes[i * 4], 4);
    return x;
  }
  uint16_t x;
  std::memcpy(&x, &bytes[i * 2], 2);
  return value16(x, dtype);
}

// Z of one token and head over the given sets; the values of set 2, text-, times `factor`.
std::vector<double> attend(const double* query, const std::vector<double> (&key)[3],
                           const std::vector<double> (&value)[3], const std::vector<int>& sets, double factor,
                           int64_t head) {
  std::vector<double> z(kHeadSize, 0.0);
  double sum = 0;
  for (const int set : sets) {
    for (int64_t t = 0; t < kLengths[set]; ++t) {
      const int64_t at = (t * kHeads + head) * kHeadSize;
      double logit = 0;
      for (int64_t c = 0; c < kHeadSize; ++c) {
        logit += query[c] * key[set][at + c];
      }
      const double weight = std::exp(logit / std::sqrt(static_cast<double>(kHeadSize)));
      sum += weight;
      for (int64_t c = 0; c < kHeadSize; ++c) {
        z[c] += weight * value[set][at + c] * (set == 2 ? factor : 1.0);
      }
    }
  }
  for (double& x : z) {
    x /= sum;
  }
  return z;
}

void guide(const std::vector<double>& positive, const std::vector<double>& negative, double* out) {
  double norm_positive = 0, norm_guided = 0;
  for (size_t c = 0; c < positive.size(); ++c) {
    norm_positive += std::fabs(positive[c]);
    norm_guided += std::fabs(kSettings.scale * positive[c] - (kSettings.scale - 1) * negative[c]);
  }
  const double f = std::min(1.0, kSettings.tau * norm_positive / norm_guided);
  for (size_t c = 0; c < positive.size(); ++c) {
    const double guided = kSettings.scale * positive[c] - (kSettings.scale - 1) * negative[c];
    out[c] = kSettings.alpha * f * guided + (1 - kSettings.alpha) * positive[c];
  }
}

// The tensors of a call in double: the query, and keys and values of each set.
struct Inputs {
  std::vector<double> query;
  std::vector<double> key[3];
  std::vector<double> value[3];

  // Query, then keys, then values.
  std::vector<double>& at(int i) { return i == 0 ? query : i <= 3 ? key[i - 1] : value[i - 4]; }
};
constexpr int kNumInputs = 7;

std::vector<double> attend_all(const Inputs& in, nag::Rule rule) {
  std::vector<double> out(in.query.size());
  for (int64_t token = 0; token < kTokens; ++token) {
    std::vector<double> branches[2];
    for (int64_t head = 0; head < kHeads; ++head) {
      const double* q = &in.query[(token * kHeads + head) * kHeadSize];
      for (int text = 1; text <= 2; ++text) {
        const auto z = rule == nag::Rule::kVsf ? attend(q, in.key, in.value, {0, 1, 2}, -kSettings.scale, head)
                                               : attend(q, in.key, in.value, {0, text}, 1.0, head);
        branches[text - 1].insert(branches[text - 1].end(), z.begin(), z.end());
      }
    }
    if (rule == nag::Rule::kVsf) {
      std::copy(branches[0].begin(), branches[0].end(), &out[token * kHeads * kHeadSize]);
    } else {
      guide(branches[0], branches[1], &out[token * kHeads * kHeadSize]);
    }
  }
  return out;
}

bool close(const char* name, const std::vector<char>& out, const std::vector<double>& exact, nag::DType dtype) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    error += std::pow(read(out, i, dtype) - exact[i], 2);
    norm += exact[i] * exact[i];
  }
  // One rounding to the dtype, and for the wider types the sums before it.
  const double limits[nag::kNumDTypes] = {5e-7, 0x1p-11, 0x1p-8, 1e-15};
  const double relative = std::sqrt(error / norm);
  const bool ok = relative <= limits[static_cast<int>(dtype)];
  std::printf("%s dtype %d: error %.2g, %s\n", name, static_cast<int>(dtype), relative, ok ? "right" : "WRONG");
  return ok;
}

// The gradient of sum(push out): along a direction in each tensor, beside a difference quotient of the loops in double.
bool gradient_is_right(const nag::GradientKernel& kernel, nag::GradientParams g, nag::DType dtype, Inputs in,
                       const std::vector<double>& push) {
  const nag::AttentionParams& p = g.attention;
  g.panels = (kTokens + kernel.panel_tokens - 1) / kernel.panel_tokens;
  const int64_t panels = kHeads * g.panels;
  std::vector<char> found[kNumInputs];
  for (int i = 0; i < kNumInputs; ++i) {
    found[i].resize(in.at(i).size() * size_of(dtype));
  }
  g.d_query = found[0].data();
  for (int set = 0; set < 3; ++set) {
    g.d_key[set] = found[1 + set].data();
    g.d_value[set] = found[4 + set].data();
    g.length[set] = kLengths[set];
  }
  const auto push_bytes = stored(push, dtype);
  g.push = push_bytes.data();
  std::copy(p.query_stride, p.query_stride + 3, g.push_stride);
  g.samples = 1;
  const auto memory = [](size_t bytes) { return std::aligned_alloc(64, (bytes + 63) / 64 * 64); };
  const size_t branch = panels * kHeadSize * kernel.panel_tokens * kernel.acc_size;
  size_t scratch_bytes[2];
  kernel.scratch_bytes(g, scratch_bytes);
  g.positive = memory(branch);
  g.negative = memory(branch);
  g.rows = memory(panels * kernel.row_numbers * kernel.panel_tokens * kernel.acc_size);
  g.settings_sums = memory(g.panels * 3 * kernel.acc_size);
  void* const first_steps = memory(scratch_bytes[0]);
  void* const third_step = memory(scratch_bytes[1]);
  for (int64_t head = 0; head < kHeads; ++head) {
    kernel.attend(g, 0, head, 0, g.panels, first_steps);
  }
  for (int64_t panel = 0; panel < g.panels; ++panel) {
    kernel.differentiate_rule(g, 0, panel, first_steps);
  }
  for (int64_t head = 0; head < kHeads; ++head) {
    kernel.differentiate_head(g, 0, head, third_step);
  }
  for (void* x : {g.positive, g.negative, g.rows, g.settings_sums, first_steps, third_step}) {
    std::free(x);
  }
  const double limits[nag::kNumDTypes] = {1e-5, 4e-3, 4e-2, 1e-6};
  bool ok = true;
  for (int i = 0; i < kNumInputs; ++i) {
    std::vector<double> kept = in.at(i), along(kept.size());
    double slope = 0, size = 0;
    for (size_t j = 0; j < kept.size(); ++j) {
      const double x = read(found[i], j, dtype);
      along[j] = uniform();
      slope += x * along[j];
      size += x * x;
    }
    double losses[2] = {0, 0};
    const double step = 1e-5;
    for (int side = 0; side < 2; ++side) {
      for (size_t j = 0; j < kept.size(); ++j) {
        in.at(i)[j] = kept[j] + (side == 0 ? step : -step) * along[j];
      }
      const auto out = attend_all(in, p.rule);
      for (size_t j = 0; j < out.size(); ++j) {
        losses[side] += out[j] * push[j];
      }
    }
    in.at(i) = kept;
    const double error = std::fabs(slope - (losses[0] - losses[1]) / (2 * step)) / std::sqrt(size);
    const bool right = size > 0 && error <= limits[static_cast<int>(dtype)];
    std::printf("gradient %d, dtype %d: error %.2g, %s\n", i, static_cast<int>(dtype), error,
                right ? "right" : "WRONG");
    ok = ok && right;
  }
  return ok;
}

}  // namespace

int main() {
  Inputs in;
  in.query = exact_values(kTokens * kHeads * kHeadSize);
  const std::vector<double>& query = in.query;
  const std::vector<double>(&key)[3] = in.key;
  const std::vector<double>(&value)[3] = in.value;
  for (int set = 0; set < 3; ++set) {
    in.key[set] = exact_values(kLengths[set] * kHeads * kHeadSize);
    in.value[set] = exact_values(kLengths[set] * kHeads * kHeadSize);
  }
  constexpr int64_t kChannels = kHeads * kHeadSize;
  const std::vector<double> push = exact_values(query.size());

  bool ok = true;
  std::vector<int64_t> index(128);
  for (size_t i = 0; i < index.size(); ++i) {
    index[i] = static_cast<int64_t>(i);
  }
  const nag::KernelTable& table = nag::default_kernels();
  for (const nag::DType dtype : {nag::DType::kFloat, nag::DType::kHalf, nag::DType::kBFloat16, nag::DType::kDouble}) {
    const nag::AttentionKernel& kernel = table.attention[static_cast<int>(dtype)];
    const auto query_bytes = stored(query, dtype);
    std::vector<char> keys[3], values[3], packed_keys[3], packed_values[3];
    std::vector<char> out(query_bytes.size());
    int64_t first[3][2];
    nag::AttentionParams p;
    p.query = query_bytes.data();
    p.out = out.data();
    p.batch = 1;
    p.tokens = kTokens;
    p.heads = p.key_heads = kHeads;
    p.head_size = kHeadSize;
    p.query_stride[1] = kChannels;
    p.query_stride[2] = kHeadSize;
    p.softmax_scale = 1 / std::sqrt(static_cast<double>(kHeadSize));
    p.settings = &kSettings;
    p.tile_tokens = 2 * kernel.panel_tokens;
    for (int set = 0; set < 3; ++set) {
      keys[set] = stored(key[set], dtype);
      values[set] = stored(value[set], dtype);
      packed_keys[set].resize(key[set].size() * kernel.element_size);
      packed_values[set].resize(value[set].size() * kernel.element_size);
      first[set][0] = 0;
      first[set][1] = kLengths[set];
      nag::Segment& s = p.segment[set];
      s.key = keys[set].data();
      s.value = values[set].data();
      s.key_stride[1] = s.value_stride[1] = kChannels;
      s.key_stride[2] = s.value_stride[2] = kHeadSize;
      s.packed_batch = 1;
      s.index = index.data();
      s.first = s.packed_first = first[set];
      s.packed_key = packed_keys[set].data();
      s.packed_value = packed_values[set].data();
    }
    void* scratch = std::aligned_alloc(64, (kernel.scratch_bytes(p) + 63) / 64 * 64);
    for (int set = 0; set < 3; ++set) {
      for (int64_t head = 0; head < kHeads; ++head) {
        kernel.pack_head(p, set, 0, head, scratch);
      }
    }
    for (const nag::Rule rule : {nag::Rule::kNag, nag::Rule::kVsf}) {
      p.rule = rule;
      for (int64_t token = 0; token < kTokens; token += p.tile_tokens) {
        kernel.run_tile(p, 0, token, scratch);
      }
      const char* const name = rule == nag::Rule::kVsf ? "attention, vsf," : "attention";
      ok = close(name, out, attend_all(in, rule), dtype) && ok;
      nag::GradientParams g;
      g.attention = p;
      ok = gradient_is_right(table.gradient[static_cast<int>(dtype)], g, dtype, in, push) && ok;
    }
    std::free(scratch);
  }

  std::vector<double> guided(query.size());
  const std::vector<double> other = exact_values(kTokens * kChannels);
  std::vector<char> out(query.size() * 4);
  const auto positive = stored(query, nag::DType::kFloat);
  const auto negative = stored(other, nag::DType::kFloat);
  for (int64_t row = 0; row < kTokens; ++row) {
    const int64_t at = row * kChannels;
    guide({query.begin() + at, query.begin() + at + kChannels}, {other.begin() + at, other.begin() + at + kChannels},
          &guided[at]);
    table.guidance[0].run_row(&positive[at * 4], &negative[at * 4], &out[at * 4], kChannels, nag::Rule::kNag,
                              kSettings);
  }
  ok = close("guidance", out, guided, nag::DType::kFloat) && ok;
  std::printf("path %s: %s\n", table.capability, ok ? "ok" : "FAILED");
  return ok ? 0 : 1;
}
