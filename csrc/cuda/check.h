#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "common/errors.h"

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

}  // namespace sdengine::cuda
