#pragma once

#include "runtime/step_buffers.h"

// What the CPU device queues: the device interface's kernels on host memory, for every number type.
namespace sdengine::cpu {

void prepare_step(const runtime::StepBuffers& buffers);
void finish_step(const runtime::StepBuffers& buffers);
void scale(const float* source, std::size_t num_elements, double factor, void* out,
           runtime::DataType type);
void to_pixels(const void* images, runtime::DataType type, std::size_t batch,
               std::size_t num_pixels, std::uint8_t* out, std::int32_t* not_finite);

}  // namespace sdengine::cpu
