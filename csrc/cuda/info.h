#pragma once

#include <cstddef>
#include <string>

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
  int compute_capability_major;
  int compute_capability_minor;
  int num_multiprocessors;
  std::size_t total_bytes;
  std::size_t free_bytes;
};

// "13.0", or empty in a build without CUDA.
std::string compiled_version();

// Never throws.
Availability available();

DeviceInfo device_info(int device);

// Waits for all that was queued on the default stream.
void synchronize();

// Owns memory on the current device.
class Buffer {
 public:
  explicit Buffer(std::size_t size_bytes);
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
};

}  // namespace sdengine::cuda
