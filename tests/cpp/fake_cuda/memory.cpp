#include <algorithm>
#include <cstring>

#include "state.h"

using namespace fake_cuda;

namespace {

// New memory is NaN: nobody may count on zeros.
void* add_block(Blocks& blocks, std::size_t size_bytes) {
  Memory memory;
  memory.gpu = current_gpu();
  memory.bytes.assign(size_bytes, 0xff);
  unsigned char* const data = memory.bytes.data();
  blocks[data] = std::move(memory);
  return data;
}

// A freed block stays for a while, NaN all over and watched.
void drop_block(Blocks& blocks, Blocks::iterator found) {
  std::fill(found->second.bytes.begin(), found->second.bytes.end(),
            static_cast<unsigned char>(0xff));
  state().freed.push_back(std::move(found->second));
  blocks.erase(found);
  watch_freed();
}

cudaError_t free_block(Blocks& blocks, void* block) {
  if (block == nullptr) return cudaSuccess;
  if (invalidate_captures()) {
    return violate(cudaErrorStreamCaptureUnsupported, "memory was freed in a capture");
  }
  const auto found = blocks.find(static_cast<unsigned char*>(block));
  if (found == blocks.end()) {
    return violate(cudaErrorInvalidValue, "memory was freed that is not allocated");
  }
  Device& gpu = state().gpus.at(static_cast<std::size_t>(found->second.gpu));
  if (has_work(found->second.gpu) && gpu.sticky == cudaSuccess) {
    // CUDA would wait for it, and so stop every other request; we promise not to need that.
    violate(cudaSuccess, "memory was freed while work was queued");
    run_everything(found->second.gpu);
  }
  if (&blocks == &state().blocks) gpu.live_bytes -= found->second.bytes.size();
  drop_block(blocks, found);
  return cudaSuccess;
}

// What lies on the GPU must be one live block, when a copy is queued and when it runs; and so must
// pinned host memory.
void run_copy(void* target, const void* source, std::size_t size_bytes, bool is_upload,
              bool was_pinned) {
  const void* const device = is_upload ? target : source;
  const void* const host = is_upload ? source : target;
  if (!is_device_memory(device, size_bytes) || (was_pinned && !is_pinned(host, size_bytes))) {
    violate(cudaSuccess, "memory was freed while a copy waited for it");
    state().gpus.at(static_cast<std::size_t>(current_gpu())).sticky = cudaErrorIllegalAddress;
    return;
  }
  std::memcpy(target, source, size_bytes);
}

void count_copy(std::size_t size_bytes, bool is_upload, bool is_pageable) {
  Ledger& ledger = state().ledger;
  ++(is_upload ? ledger.uploads : ledger.downloads);
  (is_upload ? ledger.uploaded_bytes : ledger.downloaded_bytes) += size_bytes;
  ledger.pageable_copies += is_pageable ? 1 : 0;
}

}  // namespace

cudaError_t cudaMalloc(void** block, std::size_t size_bytes) {
  const Lock lock(state().mutex);
  Device& gpu = use_gpu();
  if (invalidate_captures()) {
    return answer(violate(cudaErrorStreamCaptureUnsupported, "memory was allocated in a capture"));
  }
  ++state().allocations;
  if (size_bytes > gpu.described.memory_bytes - gpu.live_bytes) {
    return answer(cudaErrorMemoryAllocation);
  }
  *block = add_block(state().blocks, size_bytes);
  gpu.live_bytes += size_bytes;
  return answer(cudaSuccess);
}

cudaError_t cudaFree(void* block) {
  const Lock lock(state().mutex);
  return answer(free_block(state().blocks, block));
}

cudaError_t cudaHostAlloc(void** block, std::size_t size_bytes, unsigned) {
  const Lock lock(state().mutex);
  use_gpu();
  if (invalidate_captures()) {
    return answer(violate(cudaErrorStreamCaptureUnsupported, "memory was pinned in a capture"));
  }
  *block = add_block(state().host_blocks, size_bytes);
  return answer(cudaSuccess);
}

cudaError_t cudaFreeHost(void* block) {
  const Lock lock(state().mutex);
  return answer(free_block(state().host_blocks, block));
}

cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  const Lock lock(state().mutex);
  const Device& gpu = use_gpu();
  *total_bytes = gpu.described.memory_bytes;
  *free_bytes = gpu.described.memory_bytes - gpu.live_bytes;
  return answer(cudaSuccess);
}

// On the default stream, which other streams do not wait for. A copy to the GPU has read the host's
// memory when it returns, and arrives later.
cudaError_t cudaMemcpy(void* target, const void* source, std::size_t size_bytes,
                       cudaMemcpyKind kind) {
  const Lock lock(state().mutex);
  const bool is_upload = kind == cudaMemcpyHostToDevice;
  if (invalidate_captures()) {
    return answer(violate(cudaErrorStreamCaptureUnsupported, "a copy waited in a capture"));
  }
  if (!is_device_memory(is_upload ? target : source, size_bytes)) {
    return answer(violate(cudaErrorInvalidValue, "a copy went beyond the device's memory"));
  }
  ++state().ledger.waits;
  Queue& queue = *use_gpu().default_stream->queue;
  run_all(queue);
  const auto* const first = static_cast<const unsigned char*>(source);
  const std::vector<unsigned char> staged(first, first + (is_upload ? size_bytes : 0));
  const cudaError_t status = enqueue(nullptr, [=] {
    count_copy(size_bytes, is_upload, true);
    run_copy(target, is_upload ? staged.data() : source, size_bytes, is_upload, false);
  });
  if (!is_upload) run_all(queue);
  return answer(status);
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t size_bytes,
                            cudaMemcpyKind kind, cudaStream_t handle) {
  const Lock lock(state().mutex);
  const bool is_upload = kind == cudaMemcpyHostToDevice;
  if (!is_device_memory(is_upload ? target : source, size_bytes)) {
    return answer(violate(cudaErrorInvalidValue, "a copy went beyond the device's memory"));
  }
  const bool pinned = is_pinned(is_upload ? source : target, size_bytes);
  const cudaError_t status = enqueue(handle, [=] {
    count_copy(size_bytes, is_upload, !pinned);
    run_copy(target, source, size_bytes, is_upload, pinned);
  });
  FakeStream* const stream = find_stream(handle);
  // What was captured reads and writes the host's memory at each launch, whatever it is then.
  if (status == cudaSuccess && !pinned && stream->capture() == nullptr) run_all(*stream->queue);
  return answer(status);
}

cudaError_t cudaMemsetAsync(void* target, int value, std::size_t size_bytes, cudaStream_t stream) {
  const Lock lock(state().mutex);
  if (!is_device_memory(target, size_bytes)) {
    return answer(violate(cudaErrorInvalidValue, "a fill went beyond the device's memory"));
  }
  return answer(enqueue(stream, [=] {
    ++state().ledger.fills;
    if (is_device_memory(target, size_bytes)) {
      std::memset(target, value, size_bytes);
    } else {
      violate(cudaSuccess, "memory was freed while a fill waited for it");
      state().gpus.at(static_cast<std::size_t>(current_gpu())).sticky = cudaErrorIllegalAddress;
    }
  }));
}
