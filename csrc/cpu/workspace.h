// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// What attention and its gradient share on the host: the memory of one call, and which keys each sample sees.
#pragma once

#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#if defined(__linux__)
#  include <sys/mman.h>
#endif

#include "host.h"

namespace nag {

// Memory of one call. Up to kKeepBytes stay with the library for the next one: a fresh page costs a fault and its
// clearing, for the joint layers of FLUX.1 and SD3.5 at 512 px 5 to 10 % of the call.
constexpr size_t kKeepBytes = 64 << 20;

class Workspace {
 public:
  explicit Workspace(size_t bytes) {
    if (bytes <= kKeepBytes) {
      block_ = kept_.exchange(nullptr);
      if (block_ != nullptr && block_->bytes >= bytes) {
        return;
      }
      std::free(block_);
    }
    // Fresh memory comes in 4 KiB pages: for large calls, ask for 2 MiB ones.
    constexpr size_t kHugePage = 2 << 20;
    const size_t alignment = bytes >= 4 * kHugePage ? kHugePage : kHeader;
    const size_t rounded = (kHeader + bytes + alignment - 1) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, rounded);
    if (memory == nullptr) {
      throw std::bad_alloc();
    }
#if defined(__linux__)
    if (alignment == kHugePage) {
      madvise(memory, rounded, MADV_HUGEPAGE);  // advice only: refused, the memory is as good as before
    }
#endif
    block_ = new (memory) Block{bytes};
  }
  ~Workspace() { std::free(block_->bytes <= kKeepBytes ? kept_.exchange(block_) : block_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  char* data() const { return reinterpret_cast<char*>(block_) + kHeader; }

 private:
  struct Block {
    size_t bytes;
  };
  static constexpr size_t kHeader = 64;  // what follows it is aligned for vectors
  static inline std::atomic<Block*> kept_{nullptr};
  Block* block_;
};

inline size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

inline void read_strides(const Tensor& x, int64_t (&strides)[3]) {
  for (int i = 0; i < 3; ++i) {
    strides[i] = x.size(i) == 1 ? 0 : x.stride(i);
  }
}

// The keys of one set that each sample sees.
struct Visible {
  std::vector<int64_t> index;
  std::vector<int64_t> first;
  std::vector<int64_t> packed_first;  // each sample's number rounded up to a multiple of key_round
};

inline Visible find_visible(int64_t length, int64_t samples, const Tensor* mask, int64_t key_round) {
  Visible visible;
  visible.first.reserve(samples + 1);
  visible.first.push_back(0);
  visible.packed_first.reserve(samples + 1);
  visible.packed_first.push_back(0);
  visible.index.reserve(length * samples);
  // As bytes: one other than 0 and 1 counts as True, as in torch, and is no valid bool in C++.
  const uint8_t* seen = mask ? static_cast<const uint8_t*>(mask->const_data_ptr()) : nullptr;
  const int64_t sample_stride = mask && mask->size(0) > 1 ? mask->stride(0) : 0;
  const int64_t token_stride = mask ? mask->stride(1) : 0;
  for (int64_t sample = 0; sample < samples; ++sample) {
    for (int64_t token = 0; token < length; ++token) {
      if (seen == nullptr || seen[sample * sample_stride + token * token_stride] != 0) {
        visible.index.push_back(token);
      }
    }
    visible.first.push_back(static_cast<int64_t>(visible.index.size()));
    const int64_t n = visible.first[sample + 1] - visible.first[sample];
    visible.packed_first.push_back(visible.packed_first[sample] + (n + key_round - 1) / key_round * key_round);
  }
  return visible;
}

}  // namespace nag
