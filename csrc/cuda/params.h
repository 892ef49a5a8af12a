// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// What the host half hands to the CUDA kernels, by value: raw pointers and plain numbers, no torch header.
#pragma once

#include <cstdint>

namespace nag {

enum class RowRule : int { kNag, kNasa, kVsf };
enum SegmentId { kShared = 0, kPositive = 1, kNegative = 2, kNumSegments = 3 };

// Scale, tau and alpha: numbers, or float32 on the device with one value per sample (stride 1) or for all (stride 0).
struct Settings {
  const float* tensor[3];  // all null where the settings are numbers
  int64_t stride[3];
  float number[3];
};

// One of the three key sets. Strides are in elements; a batch stride of 0 serves every sample. Rows are 16-byte
// aligned.
struct Segment {
  const void* key;          // [B, length, Hkv, D], unit last stride
  const void* value;        // [B, length, Hkv, D], unit last stride
  const uint8_t* mask;      // [B, length], 0 is not seen; null: all are seen
  int64_t key_stride[3];    // batch, token, head
  int64_t value_stride[3];  // batch, token, head
  int64_t mask_stride[2];   // batch, token
  int length;
  float bias;  // of the logits, in units of log 2
};

struct AttentionParams {
  const void* query;        // [B, S, H, D], unit last stride, rows 16-byte aligned
  int64_t query_stride[3];  // batch, token, head
  void* out;                // [B, S, H, D], contiguous; the one-launch kernel writes it
  float* positive;          // [B, S, H, D], contiguous: Z+ and Z- of the branches kernel
  float* negative;
  int64_t batch;
  int64_t tokens;
  int heads;
  int repeats;  // query heads of one key head
  int size;     // D, a multiple of 8
  float scale;  // of the logits, times log2(e)
  RowRule rule;
  bool keep;  // the one-launch kernel: Z+ and Z- of every head stay in shared memory; else they are computed twice
  Settings settings;
  Segment segment[kNumSegments];
};

// How the bulk copy engine finds tiles of one tensor (a CUtensorMap; encoded by tensor_map.cpp).
struct alignas(128) TensorMap {
  uint64_t words[16];
};

// The cluster kernel, on sm_90a.
struct ClusterParams {
  AttentionParams attention;
  int blocks;                     // of a cluster: block r takes heads r, r + blocks, ...
  int slots;                      // tiles of keys or values that a block's shared memory holds
  bool by_threads[kNumSegments];  // its rows have a mask or strides that the copy engine does not take
  TensorMap key[kNumSegments];    // axes: channel, token, head, sample; one of stride 0 has size 1
  TensorMap value[kNumSegments];
};

// out [N, C] = a Z+ - b Z-; a sample is rows_per_sample rows.
struct GuidanceParams {
  const void* positive;  // [N, C], unit last stride
  const void* negative;
  void* out;             // [N, C], contiguous
  int64_t positive_row;  // stride in elements
  int64_t negative_row;
  int64_t rows;
  int64_t rows_per_sample;
  int channels;
  RowRule rule;
  Settings settings;
};

}  // namespace nag
