// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Prints what csrc/cpu/processor.h finds in this processor, or in one of these words:
//     processor_main [VENDOR LEAF1_ECX LEAF7_EBX LEAF7_EDX LEAF7_1_EAX SAVED_STATE]
// and on a second line the path that csrc/cpu/capability.cpp chooses here, among kernels that are mere names.

#include <cstdio>
#include <cstdlib>

#include "cpu/capability.h"
#include "cpu/processor.h"

namespace nag {
namespace {
constexpr KernelTable named(const char* path) {
  KernelTable table = {};
  table.capability = path;
  return table;
}
constexpr KernelTable kTables[] = {named("default"), named("avx2"), named("avx512"), named("avx512_bf16"),
                                   named("amx")};
}  // namespace

const KernelTable& default_kernels() { return kTables[0]; }
const KernelTable* avx2_kernels() { return &kTables[1]; }
const KernelTable* avx512_kernels() { return &kTables[2]; }
const KernelTable* avx512_bf16_kernels() { return &kTables[3]; }
const KernelTable* amx_kernels() { return &kTables[4]; }
}  // namespace nag

int main(int count, char** arguments) {
  nag::ProcessorWords words = nag::read_processor_words();
  if (count == 7) {
    std::memcpy(words.vendor, arguments[1], sizeof(words.vendor));
    const auto number = [&](int i) { return static_cast<uint32_t>(std::strtoul(arguments[i], nullptr, 0)); };
    words.leaf1_ecx = number(2);
    words.leaf7_ebx = number(3);
    words.leaf7_edx = number(4);
    words.leaf7_1_eax = number(5);
    words.saved_state = number(6);
  }
  const nag::Processor processor = nag::processor_of(words);
  std::printf("%s%s%s%s%s\n", processor.intel ? "intel " : "", processor.avx2 ? "avx2 " : "",
              processor.avx512 ? "avx512 " : "", processor.avx512_bf16 ? "avx512_bf16 " : "",
              processor.amx_bf16 ? "amx_bf16" : "");
  std::printf("%s\n", nag::kernels().capability);
}
