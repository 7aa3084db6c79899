#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

// A CUDA runtime without a GPU, linked in place of the real one, that keeps to the documented rules
// more strictly than a GPU does. Work waits in its stream until something waits for it, so what is
// freed or read too early is found; freed memory is NaN and is watched for writes; what a program
// must not do is answered with CUDA's error where there is one and always noted as a violation.
namespace fake_cuda {

struct Counters {
  std::size_t allocations;  // calls of cudaMalloc
  std::size_t live_blocks;
  std::size_t live_bytes;
  std::size_t live_streams;
  std::size_t live_events;
  std::size_t live_graphs;  // captured and executable ones
  std::size_t launches;     // of graphs
};

// Forgets everything and begins anew with so much memory.
void reset(std::size_t memory_bytes = std::size_t{64} << 20);

Counters counters();

// What was done against the rules since reset, in words.
std::vector<std::string> violations();

// Makes the next kernel that runs fault: a sticky error, after which every call fails.
void fault_next_kernel();

// Queues or captures a kernel.
void launch_kernel(cudaStream_t stream, std::function<void()> kernel);

}  // namespace fake_cuda
