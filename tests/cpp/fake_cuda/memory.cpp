#include <algorithm>
#include <cstring>

#include "state.h"

using namespace fake_cuda;

namespace {

using Lock = std::lock_guard<std::recursive_mutex>;

// The device's side of a copy must be one live block, when it is queued and when it runs.
bool is_valid_copy(const void* target, const void* source, std::size_t size_bytes,
                   cudaMemcpyKind kind) {
  return is_device_memory(kind == cudaMemcpyHostToDevice ? target : source, size_bytes);
}

void run_copy(void* target, const void* source, const void* device, std::size_t size_bytes) {
  if (is_device_memory(device, size_bytes)) {
    std::memcpy(target, source, size_bytes);
  } else {
    violate(cudaSuccess, "memory was freed while a copy waited for it");
    state().sticky = cudaErrorIllegalAddress;
  }
}

}  // namespace

cudaError_t cudaMalloc(void** block, std::size_t size_bytes) {
  const Lock lock(state().mutex);
  if (invalidate_captures()) {
    return answer(violate(cudaErrorStreamCaptureUnsupported, "memory was allocated in a capture"));
  }
  ++state().allocations;
  if (size_bytes > state().memory_bytes - state().live_bytes) {
    return answer(cudaErrorMemoryAllocation);
  }
  Memory memory;
  // New memory is NaN too: nobody may count on zeros.
  memory.bytes.assign(size_bytes, 0xff);
  unsigned char* const data = memory.bytes.data();
  state().blocks[data] = std::move(memory);
  state().live_bytes += size_bytes;
  *block = data;
  return answer(cudaSuccess);
}

cudaError_t cudaFree(void* block) {
  const Lock lock(state().mutex);
  if (block == nullptr) return answer(cudaSuccess);
  if (invalidate_captures()) {
    return answer(violate(cudaErrorStreamCaptureUnsupported, "memory was freed in a capture"));
  }
  // As documented, it waits for all that the device does.
  run_everything();
  const auto found = state().blocks.find(static_cast<unsigned char*>(block));
  if (found == state().blocks.end()) {
    return answer(violate(cudaErrorInvalidValue, "memory was freed that is not allocated"));
  }
  state().live_bytes -= found->second.bytes.size();
  std::fill(found->second.bytes.begin(), found->second.bytes.end(),
            static_cast<unsigned char>(0xff));
  state().freed.push_back(std::move(found->second));
  state().blocks.erase(found);
  watch_freed();
  return answer(cudaSuccess);
}

cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  const Lock lock(state().mutex);
  *total_bytes = state().memory_bytes;
  *free_bytes = state().memory_bytes - state().live_bytes;
  return answer(cudaSuccess);
}

cudaError_t cudaMemcpy(void* target, const void* source, std::size_t size_bytes,
                       cudaMemcpyKind kind) {
  const Lock lock(state().mutex);
  if (invalidate_captures()) {
    return answer(violate(cudaErrorStreamCaptureUnsupported, "a copy waited in a capture"));
  }
  if (!is_valid_copy(target, source, size_bytes, kind)) {
    return answer(violate(cudaErrorInvalidValue, "a copy went beyond the device's memory"));
  }
  run_everything();
  if (state().sticky == cudaSuccess) std::memcpy(target, source, size_bytes);
  return answer(cudaSuccess);
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t size_bytes,
                            cudaMemcpyKind kind, cudaStream_t stream) {
  const Lock lock(state().mutex);
  if (!is_valid_copy(target, source, size_bytes, kind)) {
    return answer(violate(cudaErrorInvalidValue, "a copy went beyond the device's memory"));
  }
  if (kind == cudaMemcpyDeviceToHost) {
    return answer(enqueue(stream, [=] { run_copy(target, source, source, size_bytes); }));
  }
  // Pageable memory has been read when the call returns.
  const auto* const first = static_cast<const unsigned char*>(source);
  std::vector<unsigned char> staged(first, first + size_bytes);
  return answer(enqueue(stream, [target, staged = std::move(staged)] {
    run_copy(target, staged.data(), target, staged.size());
  }));
}

cudaError_t cudaMemsetAsync(void* target, int value, std::size_t size_bytes, cudaStream_t stream) {
  const Lock lock(state().mutex);
  if (!is_device_memory(target, size_bytes)) {
    return answer(violate(cudaErrorInvalidValue, "a fill went beyond the device's memory"));
  }
  return answer(enqueue(stream, [=] {
    if (is_device_memory(target, size_bytes)) {
      std::memset(target, value, size_bytes);
    } else {
      violate(cudaSuccess, "memory was freed while a fill waited for it");
      state().sticky = cudaErrorIllegalAddress;
    }
  }));
}
