#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "common/errors.h"

// What there is of GPUs, and plain memory on one. csrc/cuda implements it; csrc/no_cuda says why it
// cannot, so that the module has the same functions in every build.
namespace sdengine::cuda {

struct Availability {
  bool usable;
  std::string reason;  // what was found, or what is missing
};

struct DeviceInfo {
  std::string name;
  int compute_capability;  // times ten
  int num_multiprocessors;
  std::size_t total_bytes;
};

// "13.0", or empty in a build without CUDA.
std::string compiled_version();

// The compute capabilities, times ten, that this build has kernels for: each runs on GPUs of its
// own and, translated by the driver, on all later ones.
std::vector<int> compiled_capabilities();

// Whether a GPU is there and this build has kernels for it. Never throws. Like device_info it makes
// no CUDA context, which would take hundreds of megabytes of the GPU's memory from others.
Availability available(int device);

DeviceInfo device_info(int device);

// What is free on a GPU; makes a CUDA context there.
std::size_t free_bytes(int device);

// Waits for all that was queued on the GPU's default stream.
void synchronize(int device);

// Owns memory on a GPU.
class Buffer {
 public:
  Buffer(std::size_t size_bytes, int device);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  std::size_t size_bytes() const { return size_bytes_; }

  // Both copy between host memory and the buffer's begin and return when it is done.
  // Throw std::invalid_argument for more bytes than the buffer has.
  void upload(const void* host, std::size_t size_bytes);
  void download(void* host, std::size_t size_bytes) const;

 private:
  void* data_ = nullptr;
  std::size_t size_bytes_ = 0;
  int device_ = 0;
};

}  // namespace sdengine::cuda
