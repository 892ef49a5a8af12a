// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// What a device cannot run of this library, in words: no machine code for its chip, a driver older than the CUDA
// runtime inside, a slice of a GPU too small for clusters. Asked once for each device and form, before any launch.

#include <mutex>
#include <string>

#include "entry.h"
#include "launch.h"
#include "namespace.h"
#include "operations.h"
#include "tile_size.h"

namespace nag {
namespace {

constexpr int kMostDevices = 64;
const std::string kForms[] = {"guidance", "text", "branches", "cluster"};
constexpr int kFormCount = 4;

struct Answer {
  std::once_flag asked;
  std::string refusal;
};

std::string cuda_name(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string ask(int device, int form) {
  int driver = 0;
  int runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return "there is no CUDA driver";
  }
  if (cudaRuntimeGetVersion(&runtime) == cudaSuccess && driver / 1000 < runtime / 1000) {
    return "the driver is for CUDA " + cuda_name(driver) + ", the library was built with CUDA " + cuda_name(runtime) +
           ": it needs a newer driver, or a build with an older CUDA";
  }
  const torch::stable::accelerator::DeviceGuard guard(device);
  int clusters = 1;
  cudaError_t error = form == 1   ? find_text()
                      : form == 2 ? find_branches()
                      : form == 3 ? find_cluster(&clusters)
                                  : find_guidance();
  if (error == cudaSuccess && form == 2) {  // the blend is a kernel of its own
    error = find_guidance();
  }
  if (error == cudaSuccess && clusters > 0) {
    return {};
  }
  (void)cudaGetLastError();  // so that no later check finds it
  if (error != cudaSuccess) {
    return "the library has no code of the kernel that this device takes (CUDA error " +
           std::to_string(static_cast<int>(error)) + "): build it with TORCH_CUDA_ARCH_LIST for this chip";
  }
  return "this device, or its slice, cannot run a cluster of " + std::to_string(kClusterMaxBlocks) + " blocks at once";
}

}  // namespace

std::string device_refusal(int64_t device, const std::string& form) {
  static Answer answers[kMostDevices][kFormCount];
  const int64_t index = std::max<int64_t>(device, 0);  // the tests' tensors on a CPU: 0
  if (index >= kMostDevices) {
    return "the library takes " + std::to_string(kMostDevices) + " devices";
  }
  for (int i = 0; i < kFormCount; ++i) {
    if (form == kForms[i]) {
      Answer& answer = answers[index][i];
      std::call_once(answer.asked, [&] { answer.refusal = ask(static_cast<int>(index), i); });
      return answer.refusal;
    }
  }
  return "no kernel is of the form '" + form + "'";
}

namespace {
std::string device_refusal_op(int64_t device, std::string form) { return device_refusal(device, form); }
}  // namespace
}  // namespace nag

NAG_LIBRARY_FRAGMENT(NAG_CUDA_NAMESPACE, m) {
  m.def("device_refusal(int device, str form) -> str");  // empty: the device can run it
}

NAG_LIBRARY_IMPL(NAG_CUDA_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("device_refusal", NAG_BOX(&nag::device_refusal_op));
}
