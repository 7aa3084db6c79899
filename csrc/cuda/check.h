#pragma once

#include <cuda_runtime_api.h>

#include "common/errors.h"

namespace sdengine::cuda {

// Throws what a CUDA error means: OutOfMemoryError, DeviceLostError where the error stays for as
// long as the process lives, else DeviceError. A lost GPU gives the same error from then on.
void check(cudaError_t status, const char* doing);

// Throws DeviceLostError for a lost GPU.
void refuse_lost(int index);

// Makes a GPU the calling thread's current one, with a CUDA context on it.
// Throws DeviceLostError for a lost GPU.
void use_gpu(int index);

}  // namespace sdengine::cuda
