// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0

#include "capability.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "target.h"

#if defined(NAG_X86)
#  include "processor.h"
#endif
#if defined(NAG_X86) && defined(__linux__)
#  include <sys/syscall.h>
#  include <unistd.h>
#endif

namespace nag {
namespace {

#if defined(NAG_X86)
// Whether the system lets this process use the tile registers of AMX. Asking is what switches them on.
bool may_use_tiles() {
#  if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#  else
  return false;
#  endif
}
#endif

const KernelTable& choose() {
#if defined(NAG_X86)
  constexpr const char* kLevels[] = {"default", "avx2", "avx512", "avx512_bf16", "amx"};
  constexpr int kNumLevels = 5;
  const Processor processor = processor_of(read_processor_words());
  int allowed = kNumLevels - 1;
  // Intel's cores start a bfloat16 dot product every other cycle on one port: less arithmetic than float32's two ports
  // do (88 against 205 GFLOP/s a core on Emerald Rapids). There bfloat16 is widened, unless the pairs are asked for.
  bool pairs = !processor.intel;
  if (const char* bound = std::getenv("ATEN_CPU_CAPABILITY")) {
    for (int i = 0; i < kNumLevels; ++i) {
      if (std::strcmp(bound, kLevels[i]) == 0) {
        allowed = i;  // an unknown word bounds nothing, as in torch
        pairs = i == 3 || pairs;
      }
    }
  }
  if (allowed >= 4 && processor.amx_bf16 && amx_kernels() != nullptr && may_use_tiles()) {
    return *amx_kernels();
  }
  if (allowed >= 3 && pairs && processor.avx512_bf16 && avx512_bf16_kernels() != nullptr) {
    return *avx512_bf16_kernels();
  }
  if (allowed >= 2 && processor.avx512 && avx512_kernels() != nullptr) {
    return *avx512_kernels();
  }
  if (allowed >= 1 && processor.avx2 && avx2_kernels() != nullptr) {
    return *avx2_kernels();
  }
#endif
  return default_kernels();
}

constexpr const char* kOps[] = {"fused_guided_attention", "guidance", "fused_guided_attention_backward"};
constexpr const char* kPaths[] = {"default", "neon", "avx2", "avx512", "avx512_bf16", "amx"};
constexpr int kNumPaths = sizeof(kPaths) / sizeof(kPaths[0]);
std::atomic<int64_t> calls[3][kNumPaths];

}  // namespace

const KernelTable& kernels() {
  static const KernelTable& table = choose();
  return table;
}

void count_call(Op op, const char* path) {
  for (int i = 0; i < kNumPaths; ++i) {
    if (std::strcmp(path, kPaths[i]) == 0) {
      calls[static_cast<int>(op)][i].fetch_add(1, std::memory_order_relaxed);
    }
  }
}

void visit_calls(void (*visit)(void* context, const char* op, const char* path, int64_t count), void* context) {
  for (int op = 0; op < 3; ++op) {
    for (int i = 0; i < kNumPaths; ++i) {
      if (const int64_t count = calls[op][i].load(std::memory_order_relaxed)) {
        visit(context, kOps[op], kPaths[i], count);
      }
    }
  }
}

}  // namespace nag
