#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda/check.h"

// Element-wise kernels as plain functors: body(e) computes element e and may run on any thread.
// Their arithmetic compiles for the host too, where tests run it; the launch is all that needs a
// GPU.
namespace sdengine::cuda {

#define SDENGINE_BODY __host__ __device__

constexpr unsigned kThreads = 256;

// One thread an element up to a bound that fills every GPU; beyond it, threads take several.
inline unsigned blocks_for(std::size_t num_elements) {
  const std::size_t blocks = (num_elements + kThreads - 1) / kThreads;
  return static_cast<unsigned>(std::min<std::size_t>(blocks, 8192));
}

template <typename Body>
__global__ void for_each_element(const Body body, std::size_t num_elements) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  std::size_t e = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; e < num_elements; e += stride) body(e);
}

// The same; when all blocks are through, one thread of the last one does body.last(). blocks_done
// is zero before and after.
template <typename Body>
__global__ void for_each_element_then_last(const Body body, std::size_t num_elements,
                                           std::int32_t* blocks_done) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  std::size_t e = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; e < num_elements; e += stride) body(e);
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  if (atomicAdd(blocks_done, 1) + 1 != static_cast<std::int32_t>(gridDim.x)) return;
  *blocks_done = 0;
  body.last();
}

// Brings a kernel's code to the current GPU, which CUDA otherwise does at its first launch: that
// may lie in a capture. Fails where the build has no code for the GPU.
template <typename Body>
void load() {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, for_each_element<Body>), "loading a kernel");
}

template <typename Body>
void load_then_last() {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, for_each_element_then_last<Body>), "loading a kernel");
}

template <typename Body>
void launch_then_last(const Body& body, std::size_t num_elements, std::int32_t* blocks_done,
                      cudaStream_t stream, const char* doing) {
  for_each_element_then_last<<<blocks_for(num_elements), kThreads, 0, stream>>>(body, num_elements,
                                                                                blocks_done);
  check(cudaGetLastError(), doing);
}

template <typename Body>
void launch(const Body& body, std::size_t num_elements, cudaStream_t stream, const char* doing) {
  if (num_elements == 0) return;
  for_each_element<<<blocks_for(num_elements), kThreads, 0, stream>>>(body, num_elements);
  check(cudaGetLastError(), doing);
}

}  // namespace sdengine::cuda
