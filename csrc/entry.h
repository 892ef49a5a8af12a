// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// NAG_BOX in place of TORCH_BOX: how torch enters an operation of this library. No exception of ours leaves it, since
// torch catches those of its own C++ library only: with another one inside (zig links libc++), the process would end
// where a shape is refused. The message goes to torch by a C function, and torch throws.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <cstdio>
#include <exception>

namespace nag {

using Boxed = void(StableIValue* stack, uint64_t num_arguments, uint64_t num_outputs);

inline thread_local char thrown_message[4096];

// Null, or the message of what the kernel threw. Not inlined: a frame that catches would be asked while torch's
// exception passes, and answers to its own library's exceptions only.
template <Boxed* kKernel>
__attribute__((noinline)) const char* message_of(StableIValue* stack, uint64_t num_arguments,
                                                 uint64_t num_outputs) noexcept {
  try {
    kKernel(stack, num_arguments, num_outputs);
    return nullptr;
  } catch (const std::exception& error) {
    std::snprintf(thrown_message, sizeof(thrown_message), "%s", error.what());
  } catch (...) {
    std::snprintf(thrown_message, sizeof(thrown_message), "nag: an exception of an unknown type");
  }
  return thrown_message;
}

// Nothing in it has a destructor, so that torch's exception may pass.
template <Boxed* kKernel>
void enter(StableIValue* stack, uint64_t num_arguments, uint64_t num_outputs) {
  if (const char* message = message_of<kKernel>(stack, num_arguments, num_outputs)) {
    aoti_torch_check(false, "nag", __FILE__, __LINE__, message);
  }
}

}  // namespace nag

#define NAG_BOX(function) (&nag::enter<TORCH_BOX(function)>)
