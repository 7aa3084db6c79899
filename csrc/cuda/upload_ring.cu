#include <algorithm>
#include <cstring>

#include "cuda/check.h"
#include "cuda/upload_ring.h"

namespace sdengine::cuda {

UploadRing::~UploadRing() {
  for (const Slot& slot : slots_) {
    // A copy may be on its way still. Of a GPU that failed nothing is.
    cudaEventSynchronize(slot.copied);
    cudaEventDestroy(slot.copied);
    cudaFreeHost(slot.memory);
  }
  cudaGetLastError();
}

void UploadRing::copy(void* target, const void* host, std::size_t size_bytes, cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (std::size_t done = 0; done < size_bytes; done += kSlotBytes) {
    const std::size_t count = std::min(kSlotBytes, size_bytes - done);
    const Slot& slot = next_slot();
    std::memcpy(slot.memory, static_cast<const unsigned char*>(host) + done, count);
    check(cudaMemcpyAsync(static_cast<unsigned char*>(target) + done, slot.memory, count,
                          cudaMemcpyHostToDevice, stream),
          "copying to the GPU");
    check(cudaEventRecord(slot.copied, stream), "copying to the GPU");
  }
}

UploadRing::Slot& UploadRing::next_slot() {
  if (slots_.size() < kSlots) {
    Slot slot;
    check(cudaHostAlloc(&slot.memory, kSlotBytes, cudaHostAllocPortable),
          "pinning memory of the host");
    const cudaError_t status = cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming);
    if (status != cudaSuccess) cudaFreeHost(slot.memory);
    check(status, "making an event");
    slots_.push_back(slot);
    return slots_.back();
  }
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % kSlots;
  cudaError_t status = cudaEventQuery(slot.copied);
  if (status == cudaErrorNotReady) status = cudaEventSynchronize(slot.copied);
  check(status, "waiting for a copy");
  return slot;
}

}  // namespace sdengine::cuda
