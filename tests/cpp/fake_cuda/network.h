#pragma once

#include "cuda/numbers.h"
#include "sample_program.h"

// SampleProgram::predict as a kernel.
template <typename T>
struct PredictBody {
  sdengine::runtime::StepBuffers buffers;
  Evaluations* evaluations;

  void operator()(std::size_t e) const {
    namespace cuda = sdengine::cuda;
    if (e == 0 && evaluations != nullptr) evaluations->count();
    const T* const sample = static_cast<const T*>(buffers.sample);
    T* const out = static_cast<T*>(const_cast<void*>(buffers.noise_pred));
    out[e] = cuda::from_float<T>(static_cast<float>(SampleProgram::predict(
        cuda::to_float(sample[e]), buffers.timestep[0], e / buffers.num_elements)));
  }
};

template <typename T>
sdengine::runtime::Denoiser fake_cuda_network(const sdengine::runtime::StepBuffers& buffers,
                                              Evaluations* evaluations = nullptr) {
  sdengine::cuda::load<PredictBody<T>>();
  return [buffers, evaluations](sdengine::runtime::RawHandle stream) {
    sdengine::cuda::launch(PredictBody<T>{buffers, evaluations},
                           buffers.copies * buffers.num_elements,
                           reinterpret_cast<cudaStream_t>(stream), "starting the network");
  };
}
