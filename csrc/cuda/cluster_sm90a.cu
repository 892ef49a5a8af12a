// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// Compiled for sm_90a alone (cuda_build.py), where 9.0 is among the GPUs to compile for; NAG_SM90A says so.

#include "cluster_kernel.cuh"
#include "kernel_launch.h"

namespace nag {

#if defined(NAG_SM90A)

template <int kSize>
cudaError_t launch_cluster_size(const Target& target, const ClusterParams& p, int shared_bytes) {
  const int64_t tiles = (p.attention.tokens + kClusterRows - 1) / kClusterRows;
  return launch_kernel(target, cluster_kernel<device::BFloat16, kSize>, tiles * p.attention.batch * p.blocks,
                       kClusterFetching + kClusterAttending, shared_bytes, p, p.blocks);
}

bool cluster_is_built() { return true; }
cudaError_t launch_cluster(const Target& target, const ClusterParams& p, int shared_bytes) {
  return next_size(kClusterSizes, p.attention.size) == 64 ? launch_cluster_size<64>(target, p, shared_bytes)
                                                          : launch_cluster_size<128>(target, p, shared_bytes);
}
cudaError_t find_cluster(int* clusters) {
  *clusters = 0;
  const auto kernel = cluster_kernel<device::BFloat16, 128>;
  const cudaError_t error = find_code(kernel);
  return error != cudaSuccess ? error
                              : most_clusters(kernel, kClusterFetching + kClusterAttending, kClusterSharedLimit,
                                              kClusterMaxBlocks, clusters);
}

#else

bool cluster_is_built() { return false; }
cudaError_t launch_cluster(const Target&, const ClusterParams&, int) { return cudaErrorNoKernelImageForDevice; }
cudaError_t find_cluster(int* clusters) {
  *clusters = 0;
  return cudaErrorNoKernelImageForDevice;
}

#endif

}  // namespace nag
