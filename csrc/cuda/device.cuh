// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// All that the kernels take from the device: thread numbers, barriers, 16-byte access, asynchronous copies, the matrix
// instructions of sm_80 and their operand loads. With NAG_EMULATED a header of the tests puts plain C++ in their place,
// warp by warp as the PTX manual defines them, so that the kernels' own text runs on a CPU.
#pragma once

#include <cstdint>

#if defined(NAG_EMULATED)
#  include "device_emulated.h"
#else

#  define NAG_DEVICE __device__ __forceinline__
#  define NAG_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#  define NAG_GRID_CONSTANT __grid_constant__

namespace nag {
namespace device {

struct Half {};      // tags of the two element types of the matrix units
struct BFloat16 {};  // elements travel as 32-bit words, the lower address in the lower half

NAG_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
NAG_DEVICE int thread_count() { return static_cast<int>(blockDim.x); }
NAG_DEVICE int64_t block_index() { return static_cast<int64_t>(blockIdx.x); }
NAG_DEVICE char* shared_memory() {
  extern __shared__ __align__(1024) char bytes[];
  return bytes;
}
NAG_DEVICE void sync_threads() { __syncthreads(); }
NAG_DEVICE void sync_warp() { __syncwarp(); }
NAG_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
NAG_DEVICE float larger(float x, float y) { return fmaxf(x, y); }  // without NaN, which stays in what is summed
NAG_DEVICE uint32_t ballot(bool x) { return __ballot_sync(0xffffffffu, x); }

// Read-only loads of 2 to 16 bytes, and stores.
NAG_DEVICE void load(const void* from, uint32_t (&to)[4]) {
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "l"(from));
}
NAG_DEVICE void load(const void* from, uint32_t (&to)[2]) {
  asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "l"(from));
}
NAG_DEVICE void load(const void* from, uint32_t (&to)[1]) {
  asm("ld.global.nc.u32 %0, [%1];" : "=r"(to[0]) : "l"(from));
}
NAG_DEVICE uint32_t load_two_bytes(const void* from) {
  uint16_t x;
  asm("ld.global.nc.u16 %0, [%1];" : "=h"(x) : "l"(from));
  return x;
}
NAG_DEVICE uint8_t load_byte(const uint8_t* from) { return __ldg(from); }
NAG_DEVICE float load_float(const float* from) { return __ldg(from); }
NAG_DEVICE void load_own(const float* from, float (&to)[2]) {  // what this thread stored before
  const float2 x = *reinterpret_cast<const float2*>(from);
  to[0] = x.x;
  to[1] = x.y;
}
NAG_DEVICE void store(void* to, const uint32_t (&x)[4]) {
  *static_cast<uint4*>(to) = make_uint4(x[0], x[1], x[2], x[3]);
}
NAG_DEVICE void store(void* to, const uint32_t (&x)[2]) { *static_cast<uint2*>(to) = make_uint2(x[0], x[1]); }
NAG_DEVICE void store(void* to, const uint32_t (&x)[1]) { *static_cast<uint32_t*>(to) = x[0]; }
NAG_DEVICE void store_two_bytes(void* to, uint32_t x) { *static_cast<uint16_t*>(to) = static_cast<uint16_t>(x); }
NAG_DEVICE void store_float2(float* to, float x, float y) { *reinterpret_cast<float2*>(to) = make_float2(x, y); }

// Shared memory of this warp or block, four floats at a time.
NAG_DEVICE void shared_store(float* to, const float (&x)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
}
NAG_DEVICE void shared_load(const float* from, float (&to)[4]) {
  const float4 x = *reinterpret_cast<const float4*>(from);
  to[0] = x.x;
  to[1] = x.y;
  to[2] = x.z;
  to[3] = x.w;
}

// 16 bytes from global to shared memory, zeros where not `valid`; complete after copies_wait of its group.
NAG_DEVICE void copy_async(char* shared, const void* global, bool valid) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global), "r"(valid ? 16 : 0)
      : "memory");
}
NAG_DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>  // all but the last kLeft groups
NAG_DEVICE void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
NAG_DEVICE void load_matrices(const char* row, uint32_t (&to)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}
NAG_DEVICE void load_matrices_transposed(const char* row, uint32_t (&to)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// Halves of two words: the lower ones, or the upper ones.
NAG_DEVICE uint32_t lower_halves(uint32_t x, uint32_t y) { return __byte_perm(x, y, 0x5410); }
NAG_DEVICE uint32_t upper_halves(uint32_t x, uint32_t y) { return __byte_perm(x, y, 0x7632); }

// Two floats as 16-bit elements, rounded to nearest even, and back.
NAG_DEVICE uint32_t pack(BFloat16, float low, float high) {
  uint32_t x;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
  return x;
}
NAG_DEVICE uint32_t pack(Half, float low, float high) {
  uint32_t x;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
  return x;
}
NAG_DEVICE float low(BFloat16, uint32_t x) { return __uint_as_float(x << 16); }
NAG_DEVICE float high(BFloat16, uint32_t x) { return __uint_as_float(x & 0xffff0000u); }
NAG_DEVICE float low(Half, uint32_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(static_cast<uint16_t>(x)));
  return y;
}
NAG_DEVICE float high(Half tag, uint32_t x) { return low(tag, x >> 16); }
NAG_DEVICE float bits_as_float(uint32_t x) { return __uint_as_float(x); }
NAG_DEVICE uint32_t float_as_bits(float x) { return __float_as_uint(x); }

// c [16, 8] += a [16, 16] b [16, 8]. With g = lane / 4 and t = lane % 4 a lane holds of a the pairs of columns 2t, 2t +
// 1 in rows g and g + 8 (words 0, 1) and 8 columns further (words 2, 3), of b rows 2t, 2t + 1 (and 8 further) of column
// g, of c columns 2t, 2t + 1 of rows g (0, 1) and g + 8 (2, 3).
NAG_DEVICE void multiply(BFloat16, float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
NAG_DEVICE void multiply(Half, float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// c [16, 8] += a [16, 8] b [8, 8]: words 0 and 1 of a, word 0 of b.
NAG_DEVICE void multiply_short(BFloat16, float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b0));
}
NAG_DEVICE void multiply_short(Half, float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b0));
}

}  // namespace device
}  // namespace nag

#endif
