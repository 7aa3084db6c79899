#pragma once

// Takes the place of csrc/cuda/launch.h: the same functors, run by the fake.

#include <cuda_runtime.h>

#include "../fake_cuda.h"
#include "cuda/check.h"

namespace sdengine::cuda {

#define SDENGINE_BODY __host__ __device__

template <typename Body>
void launch(const Body& body, std::size_t num_elements, cudaStream_t stream, const char* doing) {
  if (num_elements == 0) return;
  fake_cuda::launch_kernel(stream, [body, num_elements] {
    for (std::size_t e = 0; e < num_elements; ++e) body(e);
  });
  check(cudaGetLastError(), doing);
}

}  // namespace sdengine::cuda
