#pragma once

#include <memory>

#include "runtime/device.h"

namespace sdengine::cuda {

// Makes the runtime's device from a GPU. Its handles are a cudaStream_t, cudaEvent_t and
// cudaGraphExec_t as integers, so that libraries which queue on CUDA streams can be networks.
// Throws DeviceError when the GPU cannot be used, and always in a build without CUDA.
std::shared_ptr<runtime::Device> make_device(int index);

}  // namespace sdengine::cuda
