#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/kernels.h"

namespace sdengine::cuda {

inline void check(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  // An error stays behind for the next cudaGetLastError, where it would be taken for a launch's.
  cudaGetLastError();
  const std::string message = std::string(doing) + ": CUDA says \"" + cudaGetErrorString(status) +
                              "\" (" + cudaGetErrorName(status) + ")";
  if (status == cudaErrorMemoryAllocation) throw OutOfMemoryError(message);
  throw DeviceError(message);
}

inline cudaStream_t stream_of(Stream stream) { return reinterpret_cast<cudaStream_t>(stream); }

constexpr unsigned kThreads = 256;

// One thread an element up to a bound that fills every GPU; beyond it, threads take several.
inline unsigned blocks_for(std::size_t num_elements) {
  const std::size_t blocks = (num_elements + kThreads - 1) / kThreads;
  return static_cast<unsigned>(std::min<std::size_t>(blocks, 8192));
}

// Grid-stride loop: first index and distance of a thread's elements.
#define SDENGINE_FIRST_INDEX (static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x)
#define SDENGINE_STRIDE (static_cast<std::size_t>(gridDim.x) * blockDim.x)

}  // namespace sdengine::cuda
