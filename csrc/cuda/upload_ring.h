#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <mutex>
#include <vector>

namespace sdengine::cuda {

// Copies of any host memory to the current GPU, by way of pinned memory: CUDA reads no other
// without waiting for the stream. Threads may share it.
class UploadRing {
 public:
  UploadRing() = default;
  ~UploadRing();
  UploadRing(const UploadRing&) = delete;
  UploadRing& operator=(const UploadRing&) = delete;

  // Queues a copy; the source may be reused at once. Waits only while everything is still queued
  // that the ring has room for.
  void copy(void* target, const void* host, std::size_t size_bytes, cudaStream_t stream);

 private:
  struct Slot {
    void* memory = nullptr;
    cudaEvent_t copied = nullptr;
  };

  static constexpr std::size_t kSlots = 8, kSlotBytes = std::size_t{1} << 20;

  Slot& next_slot();

  std::mutex mutex_;  // guards the next two
  std::vector<Slot> slots_;
  std::size_t next_ = 0;
};

}  // namespace sdengine::cuda
