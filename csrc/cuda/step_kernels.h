#pragma once

#include <cuda_runtime_api.h>

#include "runtime/step_buffers.h"

namespace sdengine::cuda {

// Device::prepare_step and Device::finish_step for each number type; see runtime/device.h.
void prepare_step(const runtime::StepBuffers& buffers, cudaStream_t stream);
void finish_step(const runtime::StepBuffers& buffers, cudaStream_t stream);

// Device::scale.
void scale(const float* source, std::size_t num_elements, double factor, void* out,
           runtime::DataType type, cudaStream_t stream);

// Device::draw_philox.
void draw_philox(std::uint64_t seed, std::uint32_t number, float* out, std::size_t count,
                 cudaStream_t stream);

}  // namespace sdengine::cuda
