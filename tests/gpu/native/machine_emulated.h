// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The machine that device_emulated.h runs kernels on: its threads, which are fibers, its shared memory, and what
// memory they may touch.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace nag {
namespace device {

struct Copy {
  char* to;
  const void* from;
  bool valid;
};

struct GroupMultiply {  // of hopper_emulated.h
  float* c;             // [columns / 8][4] of this thread
  uint32_t a[4];
  uint64_t descriptor;
  int columns;
  bool transposed;
  bool add;
  float (*widen)(uint32_t);
};

struct Thread {
  ucontext_t context;  // where it begins
  jmp_buf place;       // where it goes on
  bool begun = false;
  std::unique_ptr<char[]> stack;
  bool done = false;
  int number = 0;                                    // in the cluster
  int index = 0;                                     // in its block
  int rank = 0;                                      // of its block in the cluster
  uint32_t in[10];                                   // operands of the warp's collective instruction
  uint32_t out[4];                                   // and its result
  std::vector<std::vector<Copy>> copies;             // committed groups; the last one is open
  std::vector<std::vector<GroupMultiply>> products;  // the same of multiplications
  bool wrote_shared = false;                         // by itself, and no fence for the asynchronous units since then
};

struct Meeting {  // of a warp, four warps, a block or a cluster
  int waiting = 0;
  uint64_t round = 0;
};

struct Machine {
  std::vector<Thread> threads;
  std::vector<Meeting> warps;
  std::vector<Meeting> groups;
  std::vector<Meeting> blocks;
  Meeting cluster;
  std::vector<std::vector<char>> shared;  // of each block
  std::vector<std::pair<uintptr_t, uintptr_t>> readable;
  std::vector<std::pair<uintptr_t, uintptr_t>> writable;
  jmp_buf turn;  // where the scheduler goes on
  Thread* current = nullptr;
  int64_t first_block = 0;  // of the cluster
  int block_threads = 0;
  bool copy_early = false;
  std::string error;
  std::function<void()> kernel;
  uint64_t instructions = 0;
};

inline Machine machine;

constexpr int64_t kSharedAlignment = 1024;

// Threads change by jumps, which cost nothing. A change of contexts asks the system for its signals each time: so it
// is there to begin a thread alone.
inline void yield() {
  if (_setjmp(machine.current->place) == 0) {
    _longjmp(machine.turn, 1);
  }
}
inline void resume(Thread& thread) {  // until it yields
  machine.current = &thread;
  if (_setjmp(machine.turn) == 0) {
    if (thread.begun) {
      _longjmp(thread.place, 1);
    }
    thread.begun = true;
    setcontext(&thread.context);
  }
}

// An error ends the run: every fiber then returns to the scheduler at its next wait.
[[noreturn]] inline void fail(const std::string& what) {
  if (machine.error.empty()) {
    machine.error = what + " (block " + std::to_string(machine.first_block + machine.current->rank) + ", thread " +
                    std::to_string(machine.current->index) + ")";
  }
  machine.current->done = true;
  for (;;) {
    yield();
  }
}

inline void begin_cluster();  // hopper_emulated.h
inline void check_products_done();

inline void enter() {
  machine.kernel();
  machine.current->done = true;
  for (const auto& group : machine.current->copies) {
    if (!group.empty() && machine.error.empty()) {
      machine.error = "a thread ended with copies that it never waited for";
    }
  }
  check_products_done();
  for (;;) {
    yield();
  }
}

constexpr size_t kStackBytes = 256 << 10;

// Runs the kernel for every block, `cluster` of them at a time. `order` 0: threads in order, 1: last first, other:
// warps and their lanes shuffled by that seed. In odd orders one warp runs ahead of the others as far as the barriers
// let it.
inline void launch(int64_t blocks, int threads, int64_t shared_bytes, int order, bool copy_early,
                   std::function<void()> kernel, int cluster = 1) {
  const int all = cluster * threads;
  machine.kernel = std::move(kernel);
  machine.copy_early = copy_early;
  machine.error.clear();
  machine.block_threads = threads;
  machine.threads = std::vector<Thread>(all);
  std::vector<int> turn(all);
  for (int i = 0; i < all; ++i) {
    turn[i] = order == 1 ? all - 1 - i : i;
    machine.threads[i].stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
    machine.threads[i].number = i;
    machine.threads[i].index = i % threads;
    machine.threads[i].rank = i / threads;
  }
  std::mt19937 random(order);
  const bool greedy = order % 2 == 1;
  for (machine.first_block = 0; machine.first_block < blocks && machine.error.empty(); machine.first_block += cluster) {
    machine.shared.assign(cluster, std::vector<char>(shared_bytes + kSharedAlignment, static_cast<char>(0xff)));  // NaN
    machine.warps.assign(all / 32, Meeting());
    machine.groups.assign(all / 128 + 1, Meeting());
    machine.blocks.assign(cluster, Meeting());
    machine.cluster = Meeting();
    begin_cluster();
    for (Thread& thread : machine.threads) {
      thread.done = thread.begun = false;
      thread.copies.assign(1, {});
      thread.products.assign(1, {});
      thread.wrote_shared = false;
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get();
      thread.context.uc_stack.ss_size = kStackBytes;
      thread.context.uc_link = nullptr;
      makecontext(&thread.context, enter, 0);
    }
    if (order > 1) {
      for (size_t i = 0; i < turn.size(); i += 32) {
        const size_t other = i + random() % ((turn.size() - i) / 32) * 32;
        std::swap_ranges(turn.begin() + i, turn.begin() + i + 32, turn.begin() + other);
        std::shuffle(turn.begin() + i, turn.begin() + i + 32, random);
      }
    }
    for (bool running = true; running && machine.error.empty();) {
      running = false;
      const uint64_t before = machine.instructions;
      for (size_t i = 0; i < turn.size(); i += 32) {
        uint64_t seen;
        do {  // a warp's lanes once each or, in greedy orders, until they all wait for other warps
          seen = machine.instructions;
          for (size_t j = i; j < i + 32; ++j) {
            if (!machine.threads[turn[j]].done) {
              resume(machine.threads[turn[j]]);
              running = true;
            }
          }
        } while (greedy && machine.instructions != seen);
      }
      if (running && machine.instructions == before) {
        bool all_done = true;
        for (const Thread& thread : machine.threads) {
          all_done = all_done && thread.done;
        }
        if (!all_done && machine.error.empty()) {
          machine.error = "threads wait for others that never come";
        }
      }
    }
  }
  if (!machine.error.empty()) {
    throw std::runtime_error(machine.error);
  }
}

inline bool inside(const std::vector<std::pair<uintptr_t, uintptr_t>>& ranges, const void* at, size_t bytes) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(at);
  for (const auto& range : ranges) {
    if (first >= range.first && first + bytes <= range.second) {
      return true;
    }
  }
  return false;
}

inline void check_access(bool write, const void* at, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0) {
    fail("a global access of " + std::to_string(bytes) + " bytes is not aligned");
  }
  if (machine.readable.empty() && machine.writable.empty()) {
    return;  // the test did not say
  }
  if (!inside(write ? machine.writable : machine.readable, at, bytes) &&
      (write || !inside(machine.writable, at, bytes))) {
    fail(write ? "a global store out of bounds" : "a global load out of bounds");
  }
}

// Shared memory of a block of the cluster; this thread's own if none is named.
inline char* shared_begin(int rank = machine.current->rank) {
  std::vector<char>& bytes = machine.shared[rank];
  const uintptr_t address = reinterpret_cast<uintptr_t>(bytes.data());
  return bytes.data() + (kSharedAlignment - address % kSharedAlignment) % kSharedAlignment;
}
inline int64_t shared_size() { return static_cast<int64_t>(machine.shared[0].size()) - kSharedAlignment; }

inline void check_shared(const void* at, size_t bytes) {
  const char* const first = static_cast<const char*>(at);
  if (first < shared_begin() || first + bytes > shared_begin() + shared_size()) {
    fail("shared memory out of bounds");
  }
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0) {
    fail("a shared access is not aligned");
  }
}

// `count` threads from `first` on meet; the last one to come runs `work(&threads[first])`.
template <class F>
void meet(Meeting& meeting, int count, int first, F work) {
  const uint64_t round = meeting.round;
  if (++meeting.waiting == count) {
    meeting.waiting = 0;
    ++meeting.round;
    ++machine.instructions;
    work(&machine.threads[first]);
    return;
  }
  while (meeting.round == round) {
    yield();
  }
}

// All 32 lanes bring their operands.
template <class F>
void collective(F work) {
  const int warp = machine.current->number / 32;
  meet(machine.warps[warp], 32, warp * 32, work);
}

}  // namespace device
}  // namespace nag
