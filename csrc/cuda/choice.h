// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// What nag_kernels/gpu.py has chosen for the calls of a device, as choice.cpp remembers it. It decides nothing itself.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace nag {

// All that the choice depends on (gpu_table.Call without the chip): whether it is float16, length, heads, size, the
// lengths of text+, text- and the shared keys, key heads, whether the shared keys have a mask, the rule.
using CallFacts = std::array<int64_t, 10>;

// The calls of one device that a form of this library serves. Readers take no lock.
class RememberedCalls {
 public:
  // Beyond kMost, calls go on to Python, which serves them as well.
  void remember(const CallFacts& call, const std::string& form) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Calls* const before = calls_;
    if (find(call) != nullptr || (before != nullptr && before->size() >= kMost)) {
      return;
    }
    Calls* const after = before == nullptr ? new Calls() : new Calls(*before);
    after->emplace_back(call, form);
    calls_ = after;  // what was there is never freed: another thread may read it
  }

  // The form that serves a call; null where Python is to say.
  const std::string* find(const CallFacts& call) const {
    const Calls* const calls = calls_;
    if (calls != nullptr) {
      for (const auto& [known, form] : *calls) {
        if (known == call) {
          return &form;
        }
      }
    }
    return nullptr;
  }

 private:
  using Calls = std::vector<std::pair<CallFacts, std::string>>;
  static constexpr size_t kMost = 128;
  std::mutex mutex_;
  std::atomic<const Calls*> calls_ = nullptr;
};

}  // namespace nag
