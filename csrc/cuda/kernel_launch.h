// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The bridge between the host files, which know tensors, and the files that hold kernels, which know no torch header.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "params.h"

namespace nag {

struct Target {
  cudaStream_t stream = nullptr;
  int shared_limit = 0;  // bytes of shared memory that one block may have
};

enum class Element : int { kFloat, kHalf, kBFloat16 };

// Each launches one kernel and returns the launch's error. The one-launch kernel, bfloat16 and float16:
cudaError_t launch_text_bf16(const Target& target, AttentionParams p);
cudaError_t launch_text_f16(const Target& target, AttentionParams p);
// Z+ and Z-:
cudaError_t launch_branches_bf16(const Target& target, const AttentionParams& p);
cudaError_t launch_branches_f16(const Target& target, const AttentionParams& p);
// All lengths in one launch, bfloat16, on sm_90a; `shared_bytes` as cluster_plan says.
cudaError_t launch_cluster(const Target& target, const ClusterParams& p, int shared_bytes);
bool cluster_is_built();
// out [N, C] = a Z+ - b Z-; float32 inputs give an output of any type, others their own. `vectors`: rows are aligned.
cudaError_t launch_guidance(const Target& target, const GuidanceParams& p, Element in, Element out, bool vectors);

// Whether the device at hand finds code of each form that it can run: of one kernel, as all are compiled alike.
cudaError_t find_text();
cudaError_t find_branches();
cudaError_t find_guidance();
// Also how many of the largest clusters the device runs at once.
cudaError_t find_cluster(int* clusters);

template <class Params>
cudaError_t find_code(void (*kernel)(Params)) {
  cudaFuncAttributes found{};
  return cudaFuncGetAttributes(&found, reinterpret_cast<const void*>(kernel));
}

#if defined(__CUDACC__)
template <class Params>
cudaError_t launch_kernel(const Target& target, void (*kernel)(Params), int64_t blocks, int threads,
                          int64_t shared_bytes, const Params& params, int cluster = 1) {
  if (blocks > 0x7fffffff) {
    return cudaErrorInvalidConfiguration;
  }
  if (shared_bytes > 48 << 10) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      return error;
    }
  }
  if (cluster == 1) {
    kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, target.stream>>>(params);
    return cudaGetLastError();
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = target.stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, params);
}

// How many clusters of so many blocks the device runs at once.
template <class Params>
cudaError_t most_clusters(void (*kernel)(Params), int threads, int shared_bytes, int blocks, int* clusters) {
  const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) {
    return error;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaOccupancyMaxActiveClusters(clusters, kernel, &config);
}
#endif

}  // namespace nag
