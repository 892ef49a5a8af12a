// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// csrc/cuda/hopper.cuh in plain C++: what sm_90 has beyond sm_80, written from the PTX manual. A multiplication of four
// warps takes place at its wait (or when the last of their threads has issued it, as the test chooses), a tile of the
// bulk copy engine when a thread waits for its barrier (or at once), with NaN in its place until then. A thread that
// wrote to shared memory itself must fence before it tells others by a barrier.
#pragma once

#include <map>

#include "params.h"

namespace nag {
namespace device {

// --- barriers in shared memory --------------------------------------------------------------------------------------

struct Barrier {
  int count = 0;
  int missing = 0;
  int64_t bytes = 0;
  uint64_t phase = 0;
};

// What a TensorMap holds here (on a GPU it is opaque).
struct EmulatedMap {
  const char* base;
  int64_t sizes[4];    // channels, tokens, heads, samples
  int64_t strides[3];  // bytes: token, head, sample
  int64_t rows;        // of a box: so many tokens x 64 channels
};
static_assert(sizeof(EmulatedMap) <= sizeof(TensorMap));

inline bool encode_map(const void* rows, const int64_t (&sizes)[4], const int64_t (&strides)[3], int box_rows,
                       TensorMap* map) {
  EmulatedMap emulated{static_cast<const char*>(rows), {}, {}, box_rows};
  std::copy(sizes, sizes + 4, emulated.sizes);
  std::copy(strides, strides + 3, emulated.strides);
  if (reinterpret_cast<uintptr_t>(rows) % 16 != 0 || box_rows > 256) {
    return false;
  }
  std::memcpy(map, &emulated, sizeof(emulated));
  return true;
}

struct TileCopy {
  EmulatedMap map;
  char* to;
  const void* barrier;
  int at[4];
};

inline std::map<const void*, Barrier> barriers;
inline std::vector<TileCopy> tile_copies;

inline void begin_cluster() {
  barriers.clear();
  tile_copies.clear();
}

inline Barrier& barrier_at(const void* at) {
  check_shared(at, 8);
  const auto found = barriers.find(at);
  if (found == barriers.end()) {
    fail("a barrier was never initialised");
  }
  return found->second;
}

inline void barrier_step(Barrier& barrier) {
  ++machine.instructions;
  if (barrier.missing == 0 && barrier.bytes == 0) {
    barrier.missing = barrier.count;
    ++barrier.phase;
  }
}

inline int64_t swizzled(int64_t address) { return address ^ (address >> 7 & 7) << 4; }

inline void perform(const TileCopy& copy) {
  for (int64_t row = 0; row < copy.map.rows; ++row) {
    for (int64_t channel = 0; channel < 64; ++channel) {
      const int64_t at[4] = {copy.at[0] + channel, copy.at[1] + row, copy.at[2], copy.at[3]};
      bool inside = true;
      for (int i = 0; i < 4; ++i) {
        inside = inside && at[i] >= 0 && at[i] < copy.map.sizes[i];
      }
      uint16_t element = 0;
      if (inside) {
        const char* const from = copy.map.base + 2 * at[0] + at[1] * copy.map.strides[0] + at[2] * copy.map.strides[1] +
                                 at[3] * copy.map.strides[2];
        check_access(false, from, 2);
        std::memcpy(&element, from, 2);
      }
      std::memcpy(copy.to + swizzled(row * 128 + channel * 2), &element, 2);
    }
  }
  Barrier& barrier = barriers.at(copy.barrier);
  barrier.bytes -= copy.map.rows * 128;
  barrier_step(barrier);
}

inline void barrier_init(uint64_t* at, int count) {
  check_shared(at, 8);
  barriers[at] = {count, count, 0, 0};
}
inline void barriers_ready() {}

inline void barrier_arrive(uint64_t* at) {
  if (machine.current->wrote_shared) {
    fail("written to shared memory and no fence before the barrier");
  }
  Barrier& barrier = barrier_at(at);
  if (--barrier.missing < 0) {
    fail("more arrivals than a barrier counts");
  }
  barrier_step(barrier);
}
inline void barrier_arrive_expecting(uint64_t* at, int bytes) {
  barrier_at(at).bytes += bytes;
  barrier_arrive(at);
}
inline void barrier_wait(uint64_t* at, int parity) {
  for (;;) {
    for (size_t i = 0; i < tile_copies.size();) {
      if (tile_copies[i].barrier == at) {
        const TileCopy copy = tile_copies[i];
        tile_copies.erase(tile_copies.begin() + i);
        perform(copy);
      } else {
        ++i;
      }
    }
    if (barrier_at(at).phase % 2 != static_cast<uint64_t>(parity)) {
      return;
    }
    yield();
  }
}
inline void fence_for_async() { machine.current->wrote_shared = false; }

inline void copy_tile(const TensorMap& map, char* shared, uint64_t* barrier, int channel, int token, int head,
                      int sample) {
  TileCopy copy{{}, shared, barrier, {channel, token, head, sample}};
  std::memcpy(&copy.map, &map, sizeof(EmulatedMap));
  if ((shared - shared_begin()) % 1024 != 0) {
    fail("a swizzled tile that is not aligned");
  }
  check_shared(shared, 16);
  check_shared(shared + copy.map.rows * 128 - 16, 16);
  barrier_at(barrier);
  if (machine.copy_early) {
    perform(copy);
  } else {
    std::memset(shared, 0xff, copy.map.rows * 128);
    tile_copies.push_back(copy);
  }
}
inline void copy_into_tile(char* shared, const void* global, bool valid) {
  machine.current->wrote_shared = true;
  copy_async(shared, global, valid);
}
inline void shared_store_byte(uint8_t* to, uint8_t x) {
  check_shared(to, 1);
  *to = x;
}

// --- multiplications of four warps ----------------------------------------------------------------------------------

inline uint32_t shared_address(const char* at) { return static_cast<uint32_t>(at - shared_begin()); }

inline void perform(Thread* group, size_t place, size_t which) {
  const GroupMultiply& first = group[0].products[place][which];
  const auto bits = [&](int from) { return static_cast<int64_t>(first.descriptor >> from & 0x3fff) << 4; };
  if (first.descriptor >> 62 != 1 || (first.descriptor >> 49 & 7) != 0) {
    fail("a descriptor that is not one of the 128-byte swizzle");
  }
  const char* const shared = shared_begin(group[0].rank);
  std::vector<float> b(16 * first.columns);
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < first.columns; ++n) {
      const int64_t at = first.transposed ? bits(0) + n / 64 * bits(16) + k / 8 * bits(32) + k % 8 * 128 + n % 64 * 2
                                          : bits(0) + n / 8 * bits(32) + n % 8 * 128 + k * 2;
      uint16_t element;
      if (swizzled(at) + 2 > shared_size()) {
        fail("an operand beyond shared memory");
      }
      std::memcpy(&element, shared + swizzled(at), 2);
      b[k * first.columns + n] = first.widen(element);
    }
  }
  for (int warp = 0; warp < 4; ++warp) {
    float a[16][16];
    for (int lane = 0; lane < 32; ++lane) {
      const GroupMultiply& own = group[32 * warp + lane].products[place][which];
      if (own.descriptor != first.descriptor || own.columns != first.columns) {
        fail("threads of four warps that multiply by different matrices");
      }
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 2; ++j) {
          a[lane / 4 + i % 2 * 8][lane % 4 * 2 + j + i / 2 * 8] = own.widen(own.a[i] >> (16 * j) & 0xffffu);
        }
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      const GroupMultiply& own = group[32 * warp + lane].products[place][which];
      for (int i = 0; i < own.columns / 2; ++i) {
        const int row = lane / 4 + i % 4 / 2 * 8;
        const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        float sum = own.add ? own.c[i] : 0.0f;
        for (int k = 0; k < 16; ++k) {
          sum += a[row][k] * b[k * own.columns + column];
        }
        own.c[i] = sum;
      }
    }
  }
}

// All but the last `left` committed groups of multiplications.
inline void perform_groups(Thread* group, size_t left) {
  while (group[0].products.size() > left + 1) {
    for (size_t i = 0; i < group[0].products[0].size(); ++i) {
      perform(group, 0, i);
    }
    for (int i = 0; i < 128; ++i) {
      group[i].products.erase(group[i].products.begin());
    }
  }
}

inline void group_fence() {}
inline void group_commit() {
  machine.current->products.emplace_back();
  if (machine.copy_early) {
    const int group = machine.current->number / 128;
    meet(machine.groups[group], 128, group * 128, [](Thread* threads) { perform_groups(threads, 0); });
  }
}
enum WaitPlace { kInLine, kInOneArm, kInTheOther };
template <int kLeft, WaitPlace kPlace = kInLine>
void group_wait() {
  if (!machine.copy_early) {
    ++machine.instructions;
    yield();  // the others go on meanwhile
  }
  const int group = machine.current->number / 128;
  meet(machine.groups[group], 128, group * 128, [](Thread* threads) { perform_groups(threads, kLeft); });
}
inline void check_products_done() {
  for (const auto& group : machine.current->products) {
    if (!group.empty() && machine.error.empty()) {
      machine.error = "a thread ended with multiplications that it never waited for";
    }
  }
}

template <class T>
float widened(uint32_t x) {
  return widen(T(), x);
}

template <bool kTransposed, class T, int kTiles>
void group_multiply(T, float (&c)[kTiles][4], const uint32_t (&a)[4], uint64_t descriptor, bool add) {
  machine.current->products.back().push_back(
      {&c[0][0], {a[0], a[1], a[2], a[3]}, descriptor, 8 * kTiles, kTransposed, add, widened<T>});
}

// --- clusters -------------------------------------------------------------------------------------------------------

inline int cluster_rank() { return machine.current->rank; }
inline void sync_cluster() {
  meet(machine.cluster, static_cast<int>(machine.threads.size()), 0, [](Thread*) {});
}
inline float cluster_load(const float* own, int rank) {
  check_shared(own, 4);
  const auto block = machine.threads.begin() + rank * machine.block_threads;
  if (std::all_of(block, block + machine.block_threads, [](const Thread& thread) { return thread.done; })) {
    fail("a read from a block that has ended");
  }
  float x;
  std::memcpy(&x, shared_begin(rank) + shared_address(reinterpret_cast<const char*>(own)), 4);
  return x;
}
template <int kRegisters>
void registers_fewer() {}
template <int kRegisters>
void registers_more() {}

}  // namespace device
}  // namespace nag
