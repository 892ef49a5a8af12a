// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// In the place of libtorch_cuda.so, what a torch without CUDA lacks of it. Nothing that calls these can run with it.

int aoti_torch_get_current_cuda_stream(int device, void** stream) { return 1; }
int torch_c10_cuda_check_msg(int error, const char* file, const char* function, unsigned line, int device, char** message) {
  *message = 0;
  return 0;
}
void torch_c10_cuda_free_error_msg(char* message) {}
