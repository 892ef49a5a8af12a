// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// What an x86 processor can run, by its own instructions cpuid and xgetbv. __builtin_cpu_supports is not asked: what it
// answers depends on the library that a compiler links, and zig's answers no to every feature.
#pragma once

#include <cpuid.h>

#include <cstdint>
#include <cstring>

namespace nag {

// The registers that hold the answers. All zero is a processor that has none of what is asked.
struct ProcessorWords {
  char vendor[12] = {};
  uint32_t leaf1_ecx = 0;
  uint32_t leaf7_ebx = 0, leaf7_edx = 0;
  uint32_t leaf7_1_eax = 0;  // subleaf 1
  uint64_t saved_state = 0;  // XCR0: the registers that the system keeps for each program
};

inline ProcessorWords read_processor_words() {
  ProcessorWords words;
  unsigned a, b, c, d;
  if (!__get_cpuid(0, &a, &b, &c, &d)) {
    return words;
  }
  const unsigned vendor[3] = {b, d, c};
  std::memcpy(words.vendor, vendor, sizeof(vendor));
  if (__get_cpuid(1, &a, &b, &c, &d)) {
    words.leaf1_ecx = c;
  }
  constexpr unsigned kSystemUsesXsave = 1u << 27;  // without it xgetbv is no instruction
  if ((words.leaf1_ecx & kSystemUsesXsave) != 0) {
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    words.saved_state = (static_cast<uint64_t>(high) << 32) | low;
  }
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    words.leaf7_ebx = b;
    words.leaf7_edx = d;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
      words.leaf7_1_eax = a;
    }
  }
  return words;
}

// Each feature with all that the path of its name is compiled for.
struct Processor {
  bool intel;        // the vendor
  bool avx2;         // with FMA and half conversion
  bool avx512;       // F, BW, DQ and VL
  bool avx512_bf16;  // dot products of bfloat16
  bool amx_bf16;     // tiles; the system must be asked for them besides
};

inline Processor processor_of(const ProcessorWords& words) {
  const auto all = [](uint64_t word, uint64_t bits) { return (word & bits) == bits; };
  constexpr uint64_t kXmm = 1u << 1, kYmm = 1u << 2, kMasks = 1u << 5, kZmmUpper = 1u << 6, kZmm16To31 = 1u << 7;
  constexpr uint32_t kFma = 1u << 12, kAvx = 1u << 28, kF16c = 1u << 29;                              // leaf 1, ecx
  constexpr uint32_t kAvx2 = 1u << 5, kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;  // leaf 7, ebx
  constexpr uint32_t kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;                                        // leaf 7, edx
  constexpr uint32_t kAvx512Bf16 = 1u << 5;  // leaf 7, subleaf 1, eax
  Processor processor;
  processor.intel = std::memcmp(words.vendor, "GenuineIntel", sizeof(words.vendor)) == 0;
  processor.avx2 =
      all(words.saved_state, kXmm | kYmm) && all(words.leaf1_ecx, kAvx | kFma | kF16c) && all(words.leaf7_ebx, kAvx2);
  processor.avx512 = processor.avx2 && all(words.saved_state, kMasks | kZmmUpper | kZmm16To31) &&
                     all(words.leaf7_ebx, kF | kBw | kDq | kVl);
  processor.avx512_bf16 = processor.avx512 && all(words.leaf7_1_eax, kAvx512Bf16);
  processor.amx_bf16 = processor.avx512_bf16 && all(words.leaf7_edx, kAmxTile | kAmxBf16);
  return processor;
}

}  // namespace nag
