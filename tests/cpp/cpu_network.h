#pragma once

#include "cpu/device.h"
#include "sample_program.h"

// SampleProgram::predict as a network of the CPU device.
inline sdengine::runtime::Denoiser cpu_network(
    const std::shared_ptr<sdengine::cpu::CpuDevice>& device,
    const sdengine::runtime::StepBuffers& buffers, Evaluations* evaluations = nullptr) {
  return [device, buffers, evaluations](sdengine::runtime::RawHandle stream) {
    device->enqueue(
        [buffers, evaluations] {
          if (evaluations != nullptr) evaluations->count();
          const auto* sample = static_cast<const float*>(buffers.sample);
          auto* out = static_cast<float*>(const_cast<void*>(buffers.noise_pred));
          for (std::size_t i = 0; i < buffers.copies * buffers.num_elements; ++i) {
            out[i] = static_cast<float>(
                SampleProgram::predict(sample[i], buffers.timestep[0], i / buffers.num_elements));
          }
        },
        stream);
  };
}
