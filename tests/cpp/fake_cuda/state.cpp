#include "state.h"

#include <algorithm>
#include <cstring>

namespace fake_cuda {
namespace {

// Of each thread, as the current GPU is; both are forgotten at a reset.
thread_local cudaError_t last_error = cudaSuccess;
thread_local int chosen_gpu = 0;
thread_local std::size_t epoch = 0;

// Long enough to catch what comes late, short enough to be looked through often.
constexpr std::size_t kMaxFreed = 64;

void begin_epoch() {
  if (epoch == state().epoch) return;
  epoch = state().epoch;
  chosen_gpu = 0;
  last_error = cudaSuccess;
}

bool has_code_for(int capability) {
  const int built[] = {__CUDA_ARCH_LIST__};
  return std::any_of(std::begin(built), std::end(built),
                     [=](int architecture) { return architecture / 10 <= capability; });
}

bool holds(const Blocks& blocks, const void* address, std::size_t size_bytes) {
  const auto* const first = static_cast<const unsigned char*>(address);
  const auto next = blocks.upper_bound(first);
  if (next == blocks.begin()) return false;
  const auto& [begin, memory] = *std::prev(next);
  const auto offset = static_cast<std::size_t>(first - begin);
  return offset <= memory.bytes.size() && size_bytes <= memory.bytes.size() - offset;
}

// Brings a kernel's code to the current GPU.
cudaError_t load(const void* id, bool in_capture) {
  Device& gpu = use_gpu();
  if (!has_code_for(gpu.described.capability)) return cudaErrorNoKernelImageForDevice;
  if (id != nullptr && gpu.loaded.insert(id).second && in_capture) {
    violate(cudaSuccess, "a kernel was launched for the first time in a capture");
  }
  return cudaSuccess;
}

}  // namespace

State& state() {
  static State the_state;
  return the_state;
}

int current_gpu() {
  begin_epoch();
  return chosen_gpu;
}

Device& use_gpu() {
  Device& gpu = state().gpus.at(static_cast<std::size_t>(current_gpu()));
  gpu.has_context = true;
  return gpu;
}

cudaError_t violate(cudaError_t error, const std::string& what) {
  state().violations.push_back(what);
  return error;
}

cudaError_t answer(cudaError_t status) {
  const cudaError_t sticky = state().gpus.at(static_cast<std::size_t>(current_gpu())).sticky;
  if (sticky != cudaSuccess) status = sticky;
  // NotReady is an answer, not a failure.
  if (status != cudaSuccess && status != cudaErrorNotReady) last_error = status;
  return status;
}

bool is_device_memory(const void* address, std::size_t size_bytes) {
  return holds(state().blocks, address, size_bytes);
}

bool is_pinned(const void* address, std::size_t size_bytes) {
  return holds(state().host_blocks, address, size_bytes);
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
  if (state().gpus.at(static_cast<std::size_t>(queue.gpu)).sticky == cudaSuccess) operation();
  return true;
}

void run_all(Queue& queue) {
  while (run_one(queue)) {
  }
}

bool has_work(int gpu) {
  if (!state().gpus.at(static_cast<std::size_t>(gpu)).default_stream->queue->waiting.empty()) {
    return true;
  }
  return std::any_of(state().streams.begin(), state().streams.end(), [gpu](const FakeStream* s) {
    return s->queue->gpu == gpu && !s->queue->waiting.empty();
  });
}

void run_everything(int gpu) {
  run_all(*state().gpus.at(static_cast<std::size_t>(gpu)).default_stream->queue);
  for (FakeStream* stream : state().streams) {
    if (stream->queue->gpu == gpu) run_all(*stream->queue);
  }
}

bool invalidate_captures() {
  bool found = false;
  for (FakeStream* stream : state().streams) {
    const bool is_own = stream->capturing_thread == std::this_thread::get_id();
    if (stream->is_capturing && (is_own || stream->mode == cudaStreamCaptureModeGlobal)) {
      stream->is_invalidated = true;
      found = true;
    }
  }
  return found;
}

FakeStream* find_stream(FakeStream* handle) {
  if (handle == nullptr) return use_gpu().default_stream.get();
  return state().streams.count(handle) == 0 ? nullptr : handle;
}

cudaError_t enqueue(FakeStream* handle, Operation operation) {
  FakeStream* const stream = find_stream(handle);
  if (stream == nullptr) {
    return violate(cudaErrorInvalidResourceHandle, "work was queued on no living stream");
  }
  if (stream->queue->gpu != current_gpu()) {
    return violate(cudaErrorInvalidResourceHandle, "work was queued on a stream of another GPU");
  }
  if (FakeStream* const origin = stream->capture()) {
    if (origin->is_invalidated) return cudaErrorStreamCaptureInvalidated;
    origin->captured.push_back(std::move(operation));
    stream->must_join = stream != origin;
    return cudaSuccess;
  }
  const bool is_default = handle == nullptr;
  const FakeStream& default_stream = *use_gpu().default_stream;
  for (const FakeStream* other : state().streams) {
    const bool is_here = other->queue->gpu == stream->queue->gpu;
    if (is_default && is_here && !other->queue->waiting.empty()) {
      violate(cudaSuccess, "the default stream was used while another had work");
    }
  }
  if (!is_default && !default_stream.queue->waiting.empty()) {
    violate(cudaSuccess, "a stream was used while the default stream had work");
  }
  stream->queue->waiting.push_back(std::move(operation));
  ++stream->queue->num_queued;
  return cudaSuccess;
}

void launch_kernel(cudaStream_t handle, std::function<void()> kernel, const void* id) {
  const Lock lock(state().mutex);
  FakeStream* const stream = find_stream(handle);
  const cudaError_t status = load(id, stream != nullptr && stream->capture() != nullptr);
  if (status != cudaSuccess) {
    answer(status);
    return;
  }
  const auto gpu = static_cast<std::size_t>(current_gpu());
  answer(enqueue(handle, [gpu, run = std::move(kernel)] {
    if (state().faults_next) {
      state().faults_next = false;
      state().gpus.at(gpu).sticky = cudaErrorIllegalAddress;
      return;
    }
    ++state().ledger.kernels;
    run();
  }));
}

void fault_next_kernel() {
  const Lock lock(state().mutex);
  state().faults_next = true;
}

void reset(const std::vector<Gpu>& gpus) {
  State& s = state();
  const Lock lock(s.mutex);
  for (FakeStream* stream : s.streams) delete stream;
  for (FakeEvent* event : s.events) delete event;
  for (FakeGraph* graph : s.graphs) delete graph;
  for (FakeGraphExec* executable : s.executables) delete executable;
  s.streams.clear();
  s.events.clear();
  s.graphs.clear();
  s.executables.clear();
  s.blocks.clear();
  s.host_blocks.clear();
  s.freed.clear();
  s.violations.clear();
  s.allocations = 0;
  s.ledger = {};
  s.faults_next = false;
  ++s.epoch;
  s.gpus.clear();
  for (const Gpu& described : gpus) {
    Device gpu;
    gpu.described = described;
    gpu.default_stream = std::make_unique<FakeStream>();
    gpu.default_stream->queue->gpu = static_cast<int>(s.gpus.size());
    s.gpus.push_back(std::move(gpu));
  }
}

void reset(std::size_t memory_bytes) { reset({Gpu{90, memory_bytes}}); }

Counters counters() {
  State& s = state();
  const Lock lock(s.mutex);
  std::size_t live_bytes = 0, contexts = 0;
  for (const Device& gpu : s.gpus) {
    live_bytes += gpu.live_bytes;
    contexts += gpu.has_context ? 1 : 0;
  }
  return {s.allocations,
          s.blocks.size(),
          live_bytes,
          s.host_blocks.size(),
          s.streams.size(),
          s.events.size(),
          s.graphs.size() + s.executables.size(),
          contexts,
          s.ledger.graph_launches};
}

Ledger ledger() {
  const Lock lock(state().mutex);
  return state().ledger;
}

Ledger Ledger::operator-(const Ledger& earlier) const {
  return {uploads - earlier.uploads,
          uploaded_bytes - earlier.uploaded_bytes,
          downloads - earlier.downloads,
          downloaded_bytes - earlier.downloaded_bytes,
          pageable_copies - earlier.pageable_copies,
          fills - earlier.fills,
          kernels - earlier.kernels,
          graph_launches - earlier.graph_launches,
          waits - earlier.waits};
}

std::string Ledger::text() const {
  const std::pair<const char*, std::size_t> entries[] = {
      {"uploads", uploads},
      {"uploaded_bytes", uploaded_bytes},
      {"downloads", downloads},
      {"downloaded_bytes", downloaded_bytes},
      {"pageable_copies", pageable_copies},
      {"fills", fills},
      {"kernels", kernels},
      {"graph_launches", graph_launches},
      {"waits", waits},
  };
  std::string text;
  for (const auto& [name, count] : entries) {
    text += (text.empty() ? "" : ", ") + std::string(name) + " " + std::to_string(count);
  }
  return text;
}

std::vector<std::string> violations() {
  const Lock lock(state().mutex);
  watch_freed();
  return state().violations;
}

}  // namespace fake_cuda

using namespace fake_cuda;

cudaError_t cudaGetLastError() {
  const Lock lock(state().mutex);
  const int gpu = current_gpu();
  const cudaError_t sticky = state().gpus.at(static_cast<std::size_t>(gpu)).sticky;
  const cudaError_t found = sticky != cudaSuccess ? sticky : last_error;
  last_error = cudaSuccess;
  return found;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    default:
      return "cudaError";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "an error of the fake GPU";
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  const Lock lock(state().mutex);
  attributes->maxThreadsPerBlock = 1024;
  return answer(load(kernel, false));
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  const Lock lock(state().mutex);
  *count = static_cast<int>(state().gpus.size());
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  const Lock lock(state().mutex);
  if (device < 0 || static_cast<std::size_t>(device) >= state().gpus.size()) {
    return answer(cudaErrorInvalidDevice);
  }
  const Gpu& found = state().gpus[static_cast<std::size_t>(device)].described;
  std::strcpy(properties->name, "Fake GPU");
  properties->major = found.capability / 10;
  properties->minor = found.capability % 10;
  properties->multiProcessorCount = 1;
  properties->totalGlobalMem = found.memory_bytes;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  const Lock lock(state().mutex);
  *device = current_gpu();
  return cudaSuccess;
}

// Since CUDA 12 it makes the context at once.
cudaError_t cudaSetDevice(int device) {
  const Lock lock(state().mutex);
  if (device < 0 || static_cast<std::size_t>(device) >= state().gpus.size()) {
    return answer(cudaErrorInvalidDevice);
  }
  begin_epoch();
  chosen_gpu = device;
  use_gpu();
  return answer(cudaSuccess);
}
