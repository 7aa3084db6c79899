#pragma once

#include <cuda_runtime_api.h>

#include "runtime/step_buffers.h"

namespace sdengine::cuda {

// What a GPU's device queues: the kernels of runtime/device.h, for every number type. They allocate
// nothing, wait for nothing and read what varies from step to step in device memory, so that a CUDA
// graph can hold them.

// Bring all of them to the current GPU. Throw DeviceError where the build has no code for it.
void load_step_kernels();
void load_pixel_kernels();
void load_noise_kernels();

// Device::prepare_step and Device::finish_step.
void prepare_step(const runtime::StepBuffers& buffers, cudaStream_t stream);
void finish_step(const runtime::StepBuffers& buffers, cudaStream_t stream);

// Device::scale.
void scale(const float* source, std::size_t num_elements, double factor, void* out,
           runtime::DataType type, cudaStream_t stream);

// Device::to_pixels.
void to_pixels(const void* images, runtime::DataType type, std::size_t batch,
               std::size_t num_pixels, std::uint8_t* out, std::int32_t* not_finite,
               cudaStream_t stream);

// Device::draw_philox.
void draw_philox(std::uint64_t seed, std::uint32_t number, float* out, std::size_t count,
                 cudaStream_t stream);

}  // namespace sdengine::cuda
