// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// What sm_90a has beyond sm_80: barriers in shared memory, the bulk copy engine, matrix instructions of four warps with
// one operand in shared memory, clusters. With NAG_EMULATED a header of the tests stands in its place.
#pragma once

#include "device.cuh"
#include "params.h"

namespace nag {
namespace device {

// Where a matrix of 16-bit elements lies in shared memory, for the matrix instructions: rows of 128 bytes in groups of
// 8, `stride` bytes from group to group, their 16-byte units swizzled as the copy engine writes them. `leading`: from
// 64 columns to the next 64, where the rows run along the sum.
NAG_DEVICE uint64_t matrix_descriptor(uint32_t address, int leading, int stride) {
  return static_cast<uint64_t>(address >> 4 & 0x3fffu) | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32 | static_cast<uint64_t>(1) << 62;
}

#if !defined(NAG_EMULATED)

NAG_DEVICE uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

// A barrier of `count` arrivals and of the bytes that it expects; its phases have parity 0, 1, 0, ...
NAG_DEVICE void barrier_init(uint64_t* at, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(at)), "r"(count) : "memory");
}
NAG_DEVICE void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
NAG_DEVICE void barrier_arrive(uint64_t* at) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(at)) : "memory");
}
NAG_DEVICE void barrier_arrive_expecting(uint64_t* at, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(at)), "r"(bytes)
               : "memory");
}
NAG_DEVICE void barrier_wait(uint64_t* at, int parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n"
        "}"
        : "=r"(done)
        : "r"(shared_address(at)), "r"(parity)
        : "memory");
  } while (done == 0);
}
// What this thread wrote to shared memory becomes visible to the matrix instructions.
NAG_DEVICE void fence_for_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// One box of 64 channels x as many tokens as the map says, swizzled; zeros where there are none.
NAG_DEVICE void copy_tile(const TensorMap& map, char* shared, uint64_t* barrier, int channel, int token, int head,
                          int sample) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(barrier)), "r"(channel), "r"(token), "r"(head), "r"(sample)
      : "memory");
}
// The same by hand, 16 bytes.
NAG_DEVICE void copy_into_tile(char* shared, const void* global, bool valid) { copy_async(shared, global, valid); }
NAG_DEVICE void shared_store_byte(uint8_t* to, uint8_t x) { *to = x; }

// c [64, N] (+)= a [64, 16] b [16, N] by four warps, each 16 rows: a and c as in `multiply`, b in shared memory, its
// rows along the sum (kTransposed) or across. Complete after group_wait of its group; until then neither may be
// touched.
#  define NAG_TILE(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#  define NAG_TILES(i)                                                                                                 \
    NAG_TILE(i), NAG_TILE(i + 1), NAG_TILE(i + 2), NAG_TILE(i + 3), NAG_TILE(i + 4), NAG_TILE(i + 5), NAG_TILE(i + 6), \
        NAG_TILE(i + 7)
#  define NAG_FIRST_32                                                                                               \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
    "%24, %25, %26, %27, %28, %29, %30, %31"

template <bool kTransposed>
NAG_DEVICE void group_multiply(BFloat16, float (&c)[8][4], const uint32_t (&a)[4], uint64_t descriptor, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAG_FIRST_32
      "}, {%32, %33, %34, %35}, %36, add, 1, 1, %38;\n"
      "}"
      : NAG_TILES(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(static_cast<int>(add)), "n"(kTransposed));
}
template <bool kTransposed>
NAG_DEVICE void group_multiply(BFloat16, float (&c)[16][4], const uint32_t (&a)[4], uint64_t descriptor, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAG_FIRST_32
      ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, "
      "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, add, 1, 1, %70;\n"
      "}"
      : NAG_TILES(0), NAG_TILES(8)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(static_cast<int>(add)), "n"(kTransposed));
}
#  undef NAG_FIRST_32
#  undef NAG_TILES
#  undef NAG_TILE

NAG_DEVICE void group_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }  // registers are as written
NAG_DEVICE void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// All but the last kLeft groups. kPlace differs between the arms of a branch, or the compiler makes one wait of two.
enum WaitPlace { kInLine, kInOneArm, kInTheOther };
template <int kLeft, WaitPlace kPlace = kInLine>
NAG_DEVICE void group_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0; // place %1" ::"n"(kLeft), "n"(int(kPlace)) : "memory");
}

NAG_DEVICE int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
// All threads of the cluster; what they wrote to shared memory before is seen by all after it.
NAG_DEVICE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// What lies at the same place in the shared memory of another block.
NAG_DEVICE float cluster_load(const float* own, int rank) {
  float x;
  asm volatile(
      "{\n"
      ".reg .u32 there;\n"
      "mapa.shared::cluster.u32 there, %1, %2;\n"
      "ld.shared::cluster.f32 %0, [there];\n"
      "}"
      : "=f"(x)
      : "r"(shared_address(own)), "r"(rank)
      : "memory");
  return x;
}

// Registers of each thread of four warps from here on.
template <int kRegisters>
NAG_DEVICE void registers_fewer() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
NAG_DEVICE void registers_more() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#endif

}  // namespace device
}  // namespace nag
