// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Which x86 paths this compiler can build, and how a file switches its target on after the standard headers: no
// inline function of those may be emitted with wide instructions, since the linker keeps one copy for all machines.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__)
#  define NAG_X86 1
#  include <immintrin.h>
#endif

#define NAG_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#  define NAG_TARGET_BEGIN(features) \
    NAG_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#  define NAG_TARGET_END NAG_PRAGMA(clang attribute pop)
#else
#  define NAG_TARGET_BEGIN(features) NAG_PRAGMA(GCC push_options) NAG_PRAGMA(GCC target(features))
#  define NAG_TARGET_END NAG_PRAGMA(GCC pop_options)
#endif
