#pragma once

// Takes the place of csrc/cuda/launch.h: the same functors, run by the fake.

#include <cuda_runtime.h>

#include "../fake_cuda.h"
#include "cuda/check.h"

namespace sdengine::cuda {

#define SDENGINE_BODY __host__ __device__

// Its address stands for a kernel's code.
template <typename Body>
inline constexpr char kCode = 0;

template <typename Body>
void load() {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, &kCode<Body>), "loading a kernel");
}

template <typename Body>
void load_then_last() {
  load<Body>();
}

// The count of blocks is used as a GPU uses it: a kernel that finds another's is a mistake.
template <typename Body>
void launch_then_last(const Body& body, std::size_t num_elements, std::int32_t* blocks_done,
                      cudaStream_t stream, const char* doing) {
  const auto run = [body, num_elements, blocks_done] {
    for (std::size_t e = 0; e < num_elements; ++e) body(e);
    if (*blocks_done == 0) body.last();
  };
  fake_cuda::launch_kernel(stream, run, &kCode<Body>);
  check(cudaGetLastError(), doing);
}

template <typename Body>
void launch(const Body& body, std::size_t num_elements, cudaStream_t stream, const char* doing) {
  if (num_elements == 0) return;
  const auto run = [body, num_elements] {
    for (std::size_t e = 0; e < num_elements; ++e) body(e);
  };
  fake_cuda::launch_kernel(stream, run, &kCode<Body>);
  check(cudaGetLastError(), doing);
}

}  // namespace sdengine::cuda
