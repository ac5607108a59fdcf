// SPDX-License-Identifier: Apache-2.0
// The one place that speaks to the CUDA runtime: current device, current stream, launches.
#pragma once

#include "cpu/check.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cuda_runtime.h>

#include <cstdint>

namespace fastvq {

inline void check_cuda(cudaError_t error, const char* what) {
  check<std::runtime_error>(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

// While it lives, the device of a tensor is the current one. It launches on torch's current stream,
// never waits for the device and allocates nothing, so that a CUDA graph can record what it does.
class Device {
 public:
  explicit Device(const torch::stable::Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
    check_cuda(cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount,
                                      t.get_device_index()),
               "the number of multiprocessors");
  }

  int processors() const { return processors_; }
  cudaStream_t stream() const { return stream_; }

  // A kernel takes one structure; an empty grid is no launch.
  template <class Arguments>
  void launch(void (*kernel)(Arguments), dim3 grid, int threads, Arguments arguments) const {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    void* pointers[] = {&arguments};
    check_cuda(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid,
                                static_cast<unsigned>(threads), pointers, 0, stream_),
               "a launch of fastvq");
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
  int processors_ = 0;
};

}  // namespace fastvq
