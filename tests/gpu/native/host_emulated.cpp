// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The host half of the CUDA operations on the CPU: csrc/cuda/attention.cpp, guidance.cpp and choice.cpp as they stand,
// registered for CPU tensors (NAG_CUDA_KEY), over the emulated device in the place of launches, stream and device
// guard. Built by tests/emulated.py; it never ships.

#include <cstdlib>

#include "device_emulated.h"
#include "kernel_launch.h"
#include "tensor_map.h"

namespace nag {

// The emulated <<<>>>: also checks what a real launch would refuse.
template <class Params>
cudaError_t launch_kernel(const Target& target, void (*kernel)(Params), int64_t blocks, int threads,
                          int64_t shared_bytes, const Params& params, int cluster = 1) {
  if (blocks <= 0 || blocks % cluster != 0 || blocks > 0x7fffffff || threads % 32 != 0 || threads > 1024 ||
      shared_bytes > target.shared_limit) {
    return cudaErrorInvalidConfiguration;
  }
  device::machine.readable.clear();
  device::machine.writable.clear();
  device::launch(blocks, threads, shared_bytes, 0, false, [&] { kernel(params); }, cluster);
  return cudaSuccess;
}

int from_environment(const char* name, int otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

template <class Params>
cudaError_t most_clusters(void (*)(Params), int, int, int, int* clusters) {
  *clusters = from_environment("NAG_EMULATED_CLUSTERS", 16);
  return cudaSuccess;
}

bool encode_tensor_map(const void* rows, const int64_t (&sizes)[4], const int64_t (&strides)[3], int box_rows,
                       TensorMap* map) {
  return device::encode_map(rows, sizes, strides, box_rows, map);
}

}  // namespace nag

#include "attention_bf16.cu"
#include "attention_f16.cu"
#include "cluster_sm90a.cu"
#include "guidance_kernels.cu"

// In the place of what only a torch with CUDA has, and of the device guard.
extern "C" {
int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
int32_t aoti_torch_create_device_guard(int32_t, void** guard) {
  *guard = nullptr;
  return 0;
}
int32_t aoti_torch_delete_device_guard(void*) { return 0; }
int32_t torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool, char** message) {
  *message = error == 0 ? nullptr : strdup("the launch was refused");
  return 0;
}
void torch_c10_cuda_free_error_msg(char* message) { std::free(message); }
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin) {
    *value = nag::from_environment("NAG_EMULATED_SHARED_KIB", 99) << 10;
  } else {
    const int chip = nag::from_environment("NAG_EMULATED_CHIP", 90);
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? chip / 10 : chip % 10;
  }
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) {
  return nag::from_environment("NAG_EMULATED_IMAGE", 1) ? cudaSuccess : cudaErrorNoKernelImageForDevice;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = nag::from_environment("NAG_EMULATED_DRIVER", 13000);
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
