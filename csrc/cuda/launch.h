#pragma once

#include <cuda_runtime.h>

#include "cuda/check.h"

// Element-wise kernels as plain functors: body(e) computes element e and may run on any thread.
// Their arithmetic compiles for the host too, where tests run it; the launch is all that needs a
// GPU.
namespace sdengine::cuda {

#define SDENGINE_BODY __host__ __device__

template <typename Body>
__global__ void for_each_element(const Body body, std::size_t num_elements) {
  for (std::size_t e = SDENGINE_FIRST_INDEX; e < num_elements; e += SDENGINE_STRIDE) body(e);
}

template <typename Body>
void launch(const Body& body, std::size_t num_elements, cudaStream_t stream, const char* doing) {
  if (num_elements == 0) return;
  for_each_element<<<blocks_for(num_elements), kThreads, 0, stream>>>(body, num_elements);
  check(cudaGetLastError(), doing);
}

}  // namespace sdengine::cuda
