#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "fake_cuda.h"

// The fake GPUs and what lives on them. All functions expect the caller to hold State::mutex.
namespace fake_cuda {

using Operation = std::function<void()>;
using Lock = std::lock_guard<std::recursive_mutex>;

struct Queue {
  int gpu = 0;
  std::deque<Operation> waiting;
  std::uint64_t num_queued = 0;
  std::uint64_t num_done = 0;
};

struct Memory {
  std::vector<unsigned char> bytes;
  int gpu = 0;
};

using Blocks = std::map<const unsigned char*, Memory>;

struct Device {
  Gpu described;
  std::size_t live_bytes = 0;
  cudaError_t sticky = cudaSuccess;
  bool has_context = false;
  std::set<const void*> loaded;  // kernels whose code is there
  std::unique_ptr<FakeStream> default_stream;
};

struct State {
  std::recursive_mutex mutex;  // kernels may call back into the fake
  std::vector<Device> gpus;
  Blocks blocks, host_blocks;
  std::deque<Memory> freed;
  std::unordered_set<FakeStream*> streams;  // without the default ones
  std::unordered_set<FakeEvent*> events;
  std::unordered_set<FakeGraph*> graphs;
  std::unordered_set<FakeGraphExec*> executables;
  std::vector<std::string> violations;
  std::size_t allocations = 0;
  std::size_t epoch = 0;  // counts resets
  bool faults_next = false;
  Ledger ledger;
};

State& state();
// The calling thread's current GPU.
int current_gpu();
// The same, with a CUDA context on it.
Device& use_gpu();

// Notes what was done against the rules and answers with the error.
cudaError_t violate(cudaError_t error, const std::string& what);

// Every call ends here: remembers an error for cudaGetLastError, puts the GPU's sticky one first.
cudaError_t answer(cudaError_t status);

// Whether the bytes lie in one live block of a GPU, or of pinned host memory.
bool is_device_memory(const void* address, std::size_t size_bytes);
bool is_pinned(const void* address, std::size_t size_bytes);

// Notes writes into freed memory; forgets the oldest freed blocks.
void watch_freed();

// Runs one waiting operation of the queue, or says that there is none.
bool run_one(Queue& queue);
void run_all(Queue& queue);

// Whether any stream of a GPU has work that waits.
bool has_work(int gpu);
void run_everything(int gpu);

// Ends with an error every capture that an unsafe call of this thread breaks.
// Returns whether there was one.
bool invalidate_captures();

}  // namespace fake_cuda

struct FakeStream {
  std::shared_ptr<fake_cuda::Queue> queue = std::make_shared<fake_cuda::Queue>();
  bool is_capturing = false;
  bool is_invalidated = false;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id capturing_thread;
  std::vector<fake_cuda::Operation> captured;
  FakeStream* origin = nullptr;  // whose capture this stream has joined
  bool must_join = false;        // it has work there that the origin has not waited for

  FakeStream* capture() { return is_capturing ? this : origin; }
};

struct FakeEvent {
  int gpu = 0;
  std::shared_ptr<fake_cuda::Queue> queue;  // of the stream that it was last recorded on
  std::uint64_t place = 0;
  FakeStream* captured_on = nullptr;  // the stream, where it was recorded in a capture
};

struct FakeGraph {
  std::vector<fake_cuda::Operation> operations;
  int gpu = 0;
};

struct FakeGraphExec {
  std::vector<fake_cuda::Operation> operations;
  int gpu = 0;
  std::size_t num_waiting_launches = 0;
};

namespace fake_cuda {

// The stream behind a handle: null is the current GPU's default stream. Null where none lives.
FakeStream* find_stream(FakeStream* handle);

// Queues on the stream, or adds to its capture.
cudaError_t enqueue(FakeStream* handle, Operation operation);

}  // namespace fake_cuda
