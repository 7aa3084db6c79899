#pragma once

#include "runtime/step_buffers.h"

// What the CPU device queues: the device interface's kernels on host memory, for every number type.
namespace sdengine::runtime {

void cpu_prepare_step(const StepBuffers& buffers);
void cpu_finish_step(const StepBuffers& buffers);
void cpu_scale(const float* source, std::size_t num_elements, double factor, void* out,
               DataType type);
void cpu_to_pixels(const void* images, DataType type, std::size_t batch, std::size_t num_pixels,
                   std::uint8_t* out, std::int32_t* not_finite);

}  // namespace sdengine::runtime
