// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// csrc/cuda/device.cuh in plain C++, so that the kernels run on a CPU as they stand. Every thread of a block is a
// fiber; a warp's collective instruction and a block's barrier wait for the others. Operand layouts are those of the
// PTX manual (matrix fragments of mma.m16n8k16 and m16n8k8, ldmatrix), written from it and not from the kernels.
// Stricter than a GPU: global accesses must lie inside registered memory and be aligned, shared ones inside the
// block's, shared memory starts as NaN, threads run in an order that the test chooses, and an asynchronous copy takes
// place at its wait (or at its start, as the test chooses), with NaN in its place until then. The blocks of a cluster
// run side by side.
#pragma once

#include <cstdint>
#include <cstring>

#include "machine_emulated.h"

#define NAG_DEVICE inline
#define NAG_KERNEL(threads) inline void
#define NAG_GRID_CONSTANT

namespace nag {
namespace device {

struct Half {};
struct BFloat16 {};

inline int thread_index() { return machine.current->index; }
inline int thread_count() { return machine.block_threads; }
inline int64_t block_index() { return machine.first_block + machine.current->rank; }
inline char* shared_memory() { return shared_begin(); }

inline void sync_threads() {
  meet(machine.blocks[machine.current->rank], thread_count(), 0, [](Thread*) {});
}
inline void sync_warp() {
  collective([](Thread*) {});
}

inline uint32_t float_as_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float bits_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float shuffle_xor(float x, int mask) {
  machine.current->in[0] = float_as_bits(x);
  collective([mask](Thread* lanes) {
    for (int i = 0; i < 32; ++i) {
      lanes[i].out[0] = lanes[i ^ mask].in[0];
    }
  });
  return bits_as_float(machine.current->out[0]);
}
inline float larger(float x, float y) { return std::fmax(x, y); }
inline uint32_t ballot(bool x) {
  machine.current->in[0] = x ? 1 : 0;
  collective([](Thread* lanes) {
    uint32_t all = 0;
    for (int i = 0; i < 32; ++i) {
      all |= lanes[i].in[0] << i;
    }
    for (int i = 0; i < 32; ++i) {
      lanes[i].out[0] = all;
    }
  });
  return machine.current->out[0];
}

template <int kWords>
void load(const void* from, uint32_t (&to)[kWords]) {
  check_access(false, from, 4 * kWords);
  std::memcpy(to, from, 4 * kWords);
}
inline uint32_t load_two_bytes(const void* from) {
  check_access(false, from, 2);
  uint16_t x;
  std::memcpy(&x, from, 2);
  return x;
}
inline uint8_t load_byte(const uint8_t* from) {
  check_access(false, from, 1);
  return *from;
}
inline float load_float(const float* from) {
  check_access(false, from, 4);
  return *from;
}
inline void load_own(const float* from, float (&to)[2]) {
  check_access(true, from, 8);
  std::memcpy(to, from, 8);
}
template <int kWords>
void store(void* to, const uint32_t (&x)[kWords]) {
  check_access(true, to, 4 * kWords);
  std::memcpy(to, x, 4 * kWords);
}
inline void store_two_bytes(void* to, uint32_t x) {
  check_access(true, to, 2);
  const uint16_t half = static_cast<uint16_t>(x);
  std::memcpy(to, &half, 2);
}
inline void store_float2(float* to, float x, float y) {
  check_access(true, to, 8);
  to[0] = x;
  to[1] = y;
}
inline void shared_store(float* to, const float (&x)[4]) {
  check_shared(to, 16);
  std::memcpy(to, x, 16);
}
inline void shared_load(const float* from, float (&to)[4]) {
  check_shared(from, 16);
  std::memcpy(to, from, 16);
}

inline void perform(const Copy& copy) {
  if (copy.valid) {
    std::memcpy(copy.to, copy.from, 16);
  } else {
    std::memset(copy.to, 0, 16);
  }
}
inline void copy_async(char* shared, const void* global, bool valid) {
  check_shared(shared, 16);
  if (valid) {
    check_access(false, global, 16);
  }
  const Copy copy{shared, global, valid};
  if (machine.copy_early) {
    perform(copy);
  } else {
    std::memset(shared, 0xff, 16);
    machine.current->copies.back().push_back(copy);
  }
}
inline void copies_commit() { machine.current->copies.emplace_back(); }
template <int kLeft>
void copies_wait() {
  auto& copies = machine.current->copies;
  while (copies.size() > kLeft + 1) {
    for (const Copy& copy : copies.front()) {
      perform(copy);
    }
    copies.erase(copies.begin());
  }
}

inline void load_8x8(const char* row, uint32_t (&to)[4], bool transposed) {
  check_shared(row, 16);
  Thread* const self = machine.current;
  const uint64_t address = reinterpret_cast<uint64_t>(row);
  std::memcpy(self->in, &address, 8);
  collective([transposed](Thread* lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t x[8][8];
      for (int i = 0; i < 8; ++i) {
        uint64_t address;
        std::memcpy(&address, lanes[8 * matrix + i].in, 8);
        std::memcpy(x[i], reinterpret_cast<const void*>(address), 16);
      }
      for (int lane = 0; lane < 32; ++lane) {
        const int i = lane / 4;
        const int j = lane % 4 * 2;
        const uint32_t first = transposed ? x[j][i] : x[i][j];
        const uint32_t second = transposed ? x[j + 1][i] : x[i][j + 1];
        lanes[lane].out[matrix] = first | second << 16;
      }
    }
  });
  std::memcpy(to, self->out, 16);
}
inline void load_matrices(const char* row, uint32_t (&to)[4]) { load_8x8(row, to, false); }
inline void load_matrices_transposed(const char* row, uint32_t (&to)[4]) { load_8x8(row, to, true); }

inline uint32_t lower_halves(uint32_t x, uint32_t y) { return (x & 0xffffu) | y << 16; }
inline uint32_t upper_halves(uint32_t x, uint32_t y) { return x >> 16 | (y & 0xffff0000u); }

inline uint32_t round_to(BFloat16, float x) {
  const uint32_t bits = float_as_bits(x);
  return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
inline uint32_t round_to(Half, float x) {
  const _Float16 half = static_cast<_Float16>(x);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
inline float widen(BFloat16, uint32_t x) { return bits_as_float(x << 16); }
inline float widen(Half, uint32_t x) {
  const uint16_t bits = static_cast<uint16_t>(x);
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return static_cast<float>(half);
}
template <class T>
uint32_t pack(T tag, float low, float high) {
  return round_to(tag, low) | round_to(tag, high) << 16;
}
template <class T>
float low(T tag, uint32_t x) {
  return widen(tag, x & 0xffffu);
}
template <class T>
float high(T tag, uint32_t x) {
  return widen(tag, x >> 16);
}

// mma.m16n8k16 (kDepth 16) and m16n8k8 (kDepth 8) with float32 accumulators. in: 4 words of c, then a, then b.
template <class T, int kDepth>
void multiply_lanes(Thread* lanes) {
  float a[16][kDepth];
  float b[kDepth][8];
  constexpr int kWordsA = kDepth / 4;
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t* const words = lanes[lane].in + 4;
    const int group = lane / 4;
    const int in_group = lane % 4;
    for (int i = 0; i < 2 * kWordsA; ++i) {  // element i of a: row by i % 4, column by i
      const float x = widen(T(), words[i / 2] >> (i % 2 * 16) & 0xffffu);
      a[i % 4 < 2 ? group : group + 8][in_group * 2 + i % 2 + (i >= 4 ? 8 : 0)] = x;
    }
    for (int i = 0; i < kDepth / 4; ++i) {  // element i of b
      const float x = widen(T(), words[kWordsA + i / 2] >> (i % 2 * 16) & 0xffffu);
      b[in_group * 2 + i % 2 + (i >= 2 ? 8 : 0)][group] = x;
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i < 2 ? 0 : 8);
      const int column = lane % 4 * 2 + i % 2;
      float sum = bits_as_float(lanes[lane].in[i]);
      for (int k = 0; k < kDepth; ++k) {
        sum += a[row][k] * b[k][column];
      }
      lanes[lane].out[i] = float_as_bits(sum);
    }
  }
}

template <class T>
void multiply(T, float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  Thread* const self = machine.current;
  const uint32_t operands[6] = {a0, a1, a2, a3, b0, b1};
  std::memcpy(self->in, c, 16);
  std::memcpy(self->in + 4, operands, 24);
  collective(multiply_lanes<T, 16>);
  std::memcpy(c, self->out, 16);
}
template <class T>
void multiply_short(T, float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  Thread* const self = machine.current;
  const uint32_t operands[3] = {a0, a1, b0};
  std::memcpy(self->in, c, 16);
  std::memcpy(self->in + 4, operands, 12);
  collective(multiply_lanes<T, 8>);
  std::memcpy(c, self->out, 16);
}

}  // namespace device
}  // namespace nag

#include "hopper_emulated.h"
