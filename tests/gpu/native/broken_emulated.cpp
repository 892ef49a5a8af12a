// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// One kernel that a test broke on purpose, without what the module of the sound ones needs to compile. Memory that it
// touches is not checked. Each function returns what went wrong, or null.

#include <string>

#include "forms_emulated.h"

namespace {

std::string error;

template <class F>
const char* tried(F run) {
  try {
    run();
  } catch (const std::exception& caught) {
    error = caught.what();
    return error.c_str();
  }
  return nullptr;
}

}  // namespace

extern "C" {
const char* text_attention(const nag::AttentionParams* p, int order, bool early) {
  return tried([&] { nag::text_of<nag::device::BFloat16, 1>(*p, order, early); });
}
const char* branches(const nag::AttentionParams* p, int order, bool early) {
  return tried([&] { nag::branches_of<nag::device::BFloat16>(*p, order, early); });
}
const char* cluster(const nag::AttentionParams* p, int blocks, bool maps, int order, bool early) {
  return tried([&] { nag::cluster(*p, blocks, maps, order, early); });
}
}
