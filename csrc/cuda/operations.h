// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// What the host files of the operations share: attention.cpp and guidance.cpp define it for numbers and for tensors as
// settings, choice.cpp calls it.
#pragma once

#include <optional>
#include <string>

#include "checks.h"

namespace nag {

// Why the kernels of `form` cannot serve a call whose tensors have the right dimensions; empty if they can.
std::string refusal(const Tensor& query, const KeySet (&sets)[3], const std::string& form);

// Why a device cannot run the kernels of a form ("guidance", "text", "branches", "cluster") at all; empty if it can.
std::string device_refusal(int64_t device, const std::string& form);

template <class Setting>
Tensor attend(const Tensor& query, const KeySet (&sets)[3], const Setting& scale, const Setting& tau,
              const Setting& alpha, const std::optional<double>& softmax_scale, double bias, const std::string& rule,
              const std::string& form);

template <class Setting>
Tensor guide(const Tensor& positive, const Tensor& negative, const Setting& scale, const Setting& tau,
             const Setting& alpha, const std::string& rule);

}  // namespace nag
