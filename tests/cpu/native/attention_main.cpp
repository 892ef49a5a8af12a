// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The portable kernels without torch or Python, for machines that only a cross compiler and an emulator reach: guided
// attention by the rules NAG and VSF in float32, float16, bfloat16 and float64 and guidance in float32, against loops
// in double. Exits 0 if all are right.

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

}  // namespace

int main() {
  const std::vector<double> query = exact_values(kTokens * kHeads * kHeadSize);
  std::vector<double> key[3];
  std::vector<double> value[3];
  for (int set = 0; set < 3; ++set) {
    key[set] = exact_values(kLengths[set] * kHeads * kHeadSize);
    value[set] = exact_values(kLengths[set] * kHeads * kHeadSize);
  }
  constexpr int64_t kChannels = kHeads * kHeadSize;
  std::vector<double> exact(query.size());
  std::vector<double> exact_vsf;
  for (int64_t token = 0; token < kTokens; ++token) {
    std::vector<double> branches[2];
    for (int64_t head = 0; head < kHeads; ++head) {
      const double* q = &query[(token * kHeads + head) * kHeadSize];
      for (int text = 1; text <= 2; ++text) {
        const auto z = attend(q, key, value, {0, text}, 1.0, head);
        branches[text - 1].insert(branches[text - 1].end(), z.begin(), z.end());
      }
      const auto flipped = attend(q, key, value, {0, 1, 2}, -kSettings.scale, head);
      exact_vsf.insert(exact_vsf.end(), flipped.begin(), flipped.end());
    }
    guide(branches[0], branches[1], &exact[token * kChannels]);
  }

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
      const bool vsf = rule == nag::Rule::kVsf;
      ok = close(vsf ? "attention, vsf," : "attention", out, vsf ? exact_vsf : exact, dtype) && ok;
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
