#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

// A CUDA runtime without a GPU, linked in place of the real one, that keeps to the documented rules
// more strictly than a GPU does. Work waits in its stream until something waits for it, so what is
// freed or read too early is found; freed memory is NaN and is watched for writes; what a program
// must not do is answered with CUDA's error where there is one and always noted as a violation:
//
// - freeing memory, or destroying a graph, while work is queued on its GPU;
// - calls that may be unsafe in a capture: of the capturing thread, and of any where the capture's
//   mode is global; the first launch of a kernel in a capture; a capture whose streams do not join;
// - work on a stream, event or graph of another GPU than the thread's current one;
// - the default stream used while another stream has work, or the other way round: nothing orders
//   the two. A plain copy to the GPU returns before it has arrived there, as CUDA's may.
//
// Copies of host memory that is not pinned wait for their stream, as CUDA's may, and are counted.
namespace fake_cuda {

struct Gpu {
  int capability = 90;  // times ten
  std::size_t memory_bytes = std::size_t{64} << 20;
};

// What is there.
struct Counters {
  std::size_t allocations;  // calls of cudaMalloc
  std::size_t live_blocks;
  std::size_t live_bytes;
  std::size_t live_host_blocks;  // pinned
  std::size_t live_streams;
  std::size_t live_events;
  std::size_t live_graphs;  // captured and executable ones
  std::size_t contexts;     // GPUs that something made a CUDA context on
  std::size_t launches;     // of graphs
};

// What was done: copies, fills and kernels count when they run, in a graph or by themselves.
struct Ledger {
  std::size_t uploads = 0, uploaded_bytes = 0;
  std::size_t downloads = 0, downloaded_bytes = 0;
  std::size_t pageable_copies = 0;  // of the two above
  std::size_t fills = 0;
  std::size_t kernels = 0;
  std::size_t graph_launches = 0;
  std::size_t waits = 0;  // calls that wait for a stream or an event, plain copies too

  Ledger operator-(const Ledger& earlier) const;
  bool operator==(const Ledger& other) const { return text() == other.text(); }
  std::string text() const;
};

// Forgets everything and begins anew with these GPUs.
void reset(const std::vector<Gpu>& gpus);
// The same with one GPU of so much memory.
void reset(std::size_t memory_bytes = std::size_t{64} << 20);

Counters counters();
Ledger ledger();

// What was done against the rules since reset, in words.
std::vector<std::string> violations();

// Makes the next kernel that runs fault: a sticky error, after which every call fails.
void fault_next_kernel();

// Queues or captures a kernel. id: of its code, which is brought to a GPU once; null for code that
// is there already.
void launch_kernel(cudaStream_t stream, std::function<void()> kernel, const void* id = nullptr);

}  // namespace fake_cuda
