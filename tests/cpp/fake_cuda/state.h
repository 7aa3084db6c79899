#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "fake_cuda.h"

// The one fake GPU and what lives on it. All functions expect the caller to hold State::mutex.
namespace fake_cuda {

using Operation = std::function<void()>;

struct Queue {
  std::deque<Operation> waiting;
  std::uint64_t num_queued = 0;
  std::uint64_t num_done = 0;
};

struct Memory {
  std::vector<unsigned char> bytes;
};

struct State {
  std::recursive_mutex mutex;  // kernels may call back into the fake
  std::size_t memory_bytes = 0;
  std::size_t live_bytes = 0;
  std::map<const unsigned char*, Memory> blocks;
  std::deque<Memory> freed;
  std::unordered_set<FakeStream*> streams;
  std::unordered_set<FakeEvent*> events;
  std::unordered_set<FakeGraph*> graphs;
  std::unordered_set<FakeGraphExec*> executables;
  std::vector<std::string> violations;
  std::size_t allocations = 0;
  std::size_t launches = 0;
  bool faults_next = false;
  cudaError_t sticky = cudaSuccess;
};

State& state();

// Notes what was done against the rules and answers with the error.
cudaError_t violate(cudaError_t error, const std::string& what);

// Every call ends here: remembers an error for cudaGetLastError, puts the sticky one first.
cudaError_t answer(cudaError_t status);

// Whether the bytes lie in one live block.
bool is_device_memory(const void* address, std::size_t size_bytes);

// Notes writes into freed memory; forgets the oldest freed blocks.
void watch_freed();

// Runs one waiting operation of the queue, or says that there is none.
bool run_one(Queue& queue);
void run_all(Queue& queue);
void run_everything();

// Ends with an error every capture of this thread, since a forbidden call was made.
// Returns whether there was one.
bool invalidate_captures();

}  // namespace fake_cuda

struct FakeStream {
  std::shared_ptr<fake_cuda::Queue> queue = std::make_shared<fake_cuda::Queue>();
  bool is_capturing = false;
  bool is_invalidated = false;
  std::thread::id capturing_thread;
  std::vector<fake_cuda::Operation> captured;
};

struct FakeEvent {
  std::shared_ptr<fake_cuda::Queue> queue;  // of the stream that it was last recorded on
  std::uint64_t place = 0;
  bool is_captured = false;
};

struct FakeGraph {
  std::vector<fake_cuda::Operation> operations;
};

struct FakeGraphExec {
  std::vector<fake_cuda::Operation> operations;
  std::size_t num_waiting_launches = 0;
};

namespace fake_cuda {

// Queues on the stream, or adds to its capture. Null is the default stream, which is not modelled.
cudaError_t enqueue(FakeStream* stream, Operation operation);

}  // namespace fake_cuda
