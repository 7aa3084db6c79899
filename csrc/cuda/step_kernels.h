#pragma once

#include <cuda_runtime_api.h>

#include "runtime/step_buffers.h"

namespace sdengine::cuda {

// Device::prepare_step and Device::finish_step for each number type; see runtime/device.h.
void prepare_step(const runtime::StepBuffers& buffers, cudaStream_t stream);
void finish_step(const runtime::StepBuffers& buffers, cudaStream_t stream);

}  // namespace sdengine::cuda
