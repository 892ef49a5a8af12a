// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// What the host half hands to the kernels: raw pointers and plain numbers, no torch header, so that the kernels
// compile alone (other compilers, other architectures, test builds).
#pragma once

#include <cstddef>
#include <cstdint>

namespace nag {

enum class DType { kFloat, kHalf, kBFloat16, kDouble };
constexpr int kNumDTypes = 4;

enum class Rule { kNag, kNasa, kVsf };

// Guidance settings of one sample; doubles so that float64 calls keep every bit.
struct Settings {
  double scale;
  double tau;
  double alpha;
};

// One of the three key sets of a call. Strides are in elements; a batch stride of 0 serves every sample.
struct Segment {
  const void* key = nullptr;            // [batch, length, Hkv, D], unit last stride
  const void* value = nullptr;          // [batch, length, Hkv, D], unit last stride
  int64_t key_stride[3] = {0, 0, 0};    // batch, token, head
  int64_t value_stride[3] = {0, 0, 0};  // batch, token, head
  int64_t packed_batch = 0;             // how many samples have keys of their own: B, or 1 where all share them
  double logit_bias = 0.0;

  // Filled by the host before packing: the visible keys of packed sample b are index[first[b] .. first[b + 1]), n of
  // them, packed as m = n rounded up to a multiple of AttentionKernel::key_round.
  const int64_t* index = nullptr;
  const int64_t* first = nullptr;
  const int64_t* packed_first = nullptr;  // [packed_batch + 1]: the same sums over m
  void* packed_key = nullptr;             // per sample, per key head: m * key_width packed elements
  void* packed_value = nullptr;           // per sample, per key head: m / pack * value_width packed elements
};

enum SegmentId { kShared = 0, kPositive = 1, kNegative = 2, kNumSegments = 3 };

struct AttentionParams {
  const void* query = nullptr;          // [B, S, H, D], unit last stride
  int64_t query_stride[3] = {0, 0, 0};  // batch, token, head
  void* out = nullptr;                  // [B, S, H, D], contiguous
  int64_t batch = 0;
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t key_heads = 0;
  int64_t head_size = 0;
  double softmax_scale = 0.0;
  Rule rule = Rule::kNag;
  const Settings* settings = nullptr;  // [B] or [1]
  int64_t settings_stride = 0;         // 1 or 0
  int64_t tile_tokens = 0;             // queries of one work item, a multiple of AttentionKernel::panel_tokens
  Segment segment[kNumSegments];
};

// One attention kernel: a SIMD path for one dtype.
struct AttentionKernel {
  const char* path;                           // name in the call counter
  int64_t panel_tokens;                       // queries that share one vector pass
  int64_t tile_panels;                        // panels of one work item at most
  int64_t pack;                               // keys (and channels) per packed element: 2 for bfloat16 pairs, else 1
  int64_t key_round;                          // a multiple of pack
  int64_t element_size;                       // bytes of one packed element
  int64_t (*key_width)(int64_t head_size);    // packed elements of one key
  int64_t (*value_width)(int64_t head_size);  // packed channels of one value
  // Bytes of scratch that one thread needs (64-byte aligned).
  size_t (*scratch_bytes)(const AttentionParams&);
  // Packs the visible keys and values of one (segment, packed sample, key head).
  void (*pack_head)(const AttentionParams&, int64_t segment, int64_t sample, int64_t head, void* scratch);
  // Computes `tile_tokens` queries of one sample, all heads, and writes them out.
  void (*run_tile)(const AttentionParams&, int64_t sample, int64_t first_token, void* scratch);
};

// The gradient of attention for a group of samples. A panel is `panel_tokens` queries of one sample and head.
struct GradientParams {
  AttentionParams attention;           // packed keys are set for one head at a time, by the kernels
  const void* push = nullptr;          // dL/dout [B, S, H, D], unit last stride
  int64_t push_stride[3] = {0, 0, 0};  // batch, token, head
  void* d_query = nullptr;             // [B, S, H, D], contiguous; null where not wanted
  void* d_key[3] = {};                 // by segment, [B or 1, T, Hkv, D], contiguous; null where not wanted
  void* d_value[3] = {};
  void* sum_key[3] = {};  // where all samples share a key set: its sums so far, in the accumulator's type
  void* sum_value[3] = {};
  int64_t length[3] = {0, 0, 0};  // keys of each segment, hidden ones too
  bool one_item = false;          // whether the samples of a head must follow each other, because they share keys
  int64_t first_sample = 0;       // of the group
  int64_t samples = 0;
  int64_t panels = 0;             // of one sample and head
  void* positive = nullptr;       // [samples, H, panels, D, panel_tokens]: Z+, then dL/dZ+
  void* negative = nullptr;       // the same of Z-; for rule VSF what the negative text adds to Z
  void* rows = nullptr;           // [samples, H, panels, kRowNumbers, panel_tokens]
  void* settings_sums = nullptr;  // [samples, panels, 3]
};

// One kernel of the gradient, in three steps, each over items that do not touch each other's memory.
struct GradientKernel {
  int64_t panel_tokens;
  int64_t row_numbers;  // numbers that are kept of each row
  int64_t acc_size;     // bytes of one number of the accumulator's type
  // Bytes of scratch (64-byte aligned) of one thread in the first two steps, and in the third.
  void (*scratch_bytes)(const GradientParams&, size_t (&bytes)[2]);
  // Z+ and Z- of some panels of one sample and key head.
  void (*attend)(const GradientParams&, int64_t sample, int64_t key_head, int64_t first_panel, int64_t last_panel,
                 void* scratch);
  // dL/dZ+ and dL/dZ- of the tokens of one panel, in place; their part of dL/d of the settings.
  void (*differentiate_rule)(const GradientParams&, int64_t sample, int64_t panel, void* scratch);
  // dL/d of the query, keys and values of one sample and key head.
  void (*differentiate_head)(const GradientParams&, int64_t sample, int64_t key_head, void* scratch);
  // Rounds sums to the dtype of the tensors.
  void (*narrow)(const void* sums, int64_t count, void* out);
};

struct GuidanceKernel {
  const char* path;
  // One row of C channels; positive, negative and out point at its first channel.
  void (*run_row)(const void* positive, const void* negative, void* out, int64_t channels, Rule rule,
                  const Settings& settings);
};

// The kernels of one SIMD path, by dtype.
struct KernelTable {
  const char* capability;
  AttentionKernel attention[kNumDTypes];
  GuidanceKernel guidance[kNumDTypes];
  GradientKernel gradient[kNumDTypes];
};

const KernelTable& default_kernels();
const KernelTable* avx2_kernels();  // null where the compiler cannot build the path
const KernelTable* avx512_kernels();
const KernelTable* avx512_bf16_kernels();
const KernelTable* amx_kernels();

}  // namespace nag
