#include "state.h"

#include <algorithm>
#include <cstring>

namespace fake_cuda {
namespace {

thread_local cudaError_t last_error = cudaSuccess;

// Long enough to catch what comes late, short enough to be looked through often.
constexpr std::size_t kMaxFreed = 64;

}  // namespace

State& state() {
  static State the_state;
  return the_state;
}

cudaError_t violate(cudaError_t error, const std::string& what) {
  state().violations.push_back(what);
  return error;
}

cudaError_t answer(cudaError_t status) {
  if (state().sticky != cudaSuccess) status = state().sticky;
  // NotReady is an answer, not a failure.
  if (status != cudaSuccess && status != cudaErrorNotReady) last_error = status;
  return status;
}

bool is_device_memory(const void* address, std::size_t size_bytes) {
  const auto* const first = static_cast<const unsigned char*>(address);
  auto next = state().blocks.upper_bound(first);
  if (next == state().blocks.begin()) return false;
  const auto& [begin, memory] = *std::prev(next);
  const auto offset = static_cast<std::size_t>(first - begin);
  return offset <= memory.bytes.size() && size_bytes <= memory.bytes.size() - offset;
}

void watch_freed() {
  for (Memory& memory : state().freed) {
    const bool untouched = std::all_of(memory.bytes.begin(), memory.bytes.end(),
                                       [](unsigned char byte) { return byte == 0xff; });
    if (!untouched) {
      violate(cudaSuccess, "freed memory was written");
      std::fill(memory.bytes.begin(), memory.bytes.end(), static_cast<unsigned char>(0xff));
    }
  }
  while (state().freed.size() > kMaxFreed) state().freed.pop_front();
}

bool run_one(Queue& queue) {
  if (queue.waiting.empty()) return false;
  const Operation operation = std::move(queue.waiting.front());
  queue.waiting.pop_front();
  ++queue.num_done;
  if (state().sticky == cudaSuccess) operation();
  return true;
}

void run_all(Queue& queue) {
  while (run_one(queue)) {
  }
}

void run_everything() {
  for (FakeStream* stream : state().streams) run_all(*stream->queue);
}

bool invalidate_captures() {
  bool found = false;
  for (FakeStream* stream : state().streams) {
    if (stream->is_capturing && stream->capturing_thread == std::this_thread::get_id()) {
      stream->is_invalidated = true;
      found = true;
    }
  }
  return found;
}

cudaError_t enqueue(FakeStream* stream, Operation operation) {
  if (state().streams.count(stream) == 0) {
    return violate(cudaErrorInvalidResourceHandle, "work was queued on no living stream");
  }
  if (stream->is_invalidated) return cudaErrorStreamCaptureInvalidated;
  if (stream->is_capturing) {
    stream->captured.push_back(std::move(operation));
  } else {
    stream->queue->waiting.push_back(std::move(operation));
    ++stream->queue->num_queued;
  }
  return cudaSuccess;
}

void launch_kernel(cudaStream_t stream, std::function<void()> kernel) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  answer(enqueue(stream, [run = std::move(kernel)] {
    if (state().faults_next) {
      state().faults_next = false;
      state().sticky = cudaErrorIllegalAddress;
      return;
    }
    run();
  }));
}

void fault_next_kernel() {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  state().faults_next = true;
}

void reset(std::size_t memory_bytes) {
  State& s = state();
  const std::lock_guard<std::recursive_mutex> lock(s.mutex);
  for (FakeStream* stream : s.streams) delete stream;
  for (FakeEvent* event : s.events) delete event;
  for (FakeGraph* graph : s.graphs) delete graph;
  for (FakeGraphExec* executable : s.executables) delete executable;
  s.streams.clear();
  s.events.clear();
  s.graphs.clear();
  s.executables.clear();
  s.blocks.clear();
  s.freed.clear();
  s.violations.clear();
  s.memory_bytes = memory_bytes;
  s.live_bytes = s.allocations = s.launches = 0;
  s.faults_next = false;
  s.sticky = last_error = cudaSuccess;
}

Counters counters() {
  State& s = state();
  const std::lock_guard<std::recursive_mutex> lock(s.mutex);
  return {s.allocations,    s.blocks.size(), s.live_bytes,
          s.streams.size(), s.events.size(), s.graphs.size() + s.executables.size(),
          s.launches};
}

std::vector<std::string> violations() {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  watch_freed();
  return state().violations;
}

}  // namespace fake_cuda

using namespace fake_cuda;

cudaError_t cudaGetLastError() {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  const cudaError_t found = state().sticky != cudaSuccess ? state().sticky : last_error;
  last_error = cudaSuccess;
  return found;
}

const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaError";
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "an error of the fake GPU";
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return answer(cudaSuccess);
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return answer(cudaSuccess);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return answer(cudaErrorInvalidDevice);
  std::strcpy(properties->name, "Fake GPU");
  properties->major = 9;
  properties->minor = 0;
  properties->multiProcessorCount = 1;
  return answer(cudaSuccess);
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return answer(cudaSuccess);
}

cudaError_t cudaSetDevice(int device) {
  return answer(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
