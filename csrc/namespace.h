// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The namespace of the operations in torch.ops, which setup.py takes from nag_kernels/namespace.py.
#pragma once

#include <torch/csrc/stable/library.h>

#ifndef NAG_NAMESPACE
#  define NAG_NAMESPACE nag
#endif

#define NAG_JOIN_AS_IT_IS(first, second) first##second
#define NAG_JOIN(first, second) NAG_JOIN_AS_IT_IS(first, second)
#define NAG_STRING_AS_IT_IS(name) #name
#define NAG_STRING(name) NAG_STRING_AS_IT_IS(name)
#define NAG_CUDA_NAMESPACE NAG_JOIN(NAG_NAMESPACE, _cuda)
#define NAG_GPU_NAMESPACE NAG_JOIN(NAG_NAMESPACE, _gpu)

// torch's own macros paste the name that they are given; these put the namespace in its place first.
#define NAG_LIBRARY_FRAGMENT(name, m) STABLE_TORCH_LIBRARY_FRAGMENT(name, m)
#define NAG_LIBRARY_IMPL(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)
