#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/errors.h"
#include "runtime/step_buffers.h"

// The GPU counterparts of cpu/kernels.h. csrc/cuda implements them; csrc/no_cuda throws
// DeviceError instead, so that the module has the same functions in every build.
//
// Pointers are device memory unless said otherwise. Kernels are queued on `stream` (a
// cudaStream_t as an integer, 0 for the default one) and nothing waits for them; they allocate
// nothing and read what varies from step to step through `step`, so a CUDA graph can hold them.
namespace sdengine::cuda {

using Stream = std::uintptr_t;

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

void synchronize(Stream stream);

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

// Where the kernels find a step's coefficients.
struct StepTable {
  const double* rows;        // [K, R*R + 2R]: A, b and d of each step
  const std::int32_t* step;  // index of the row to use, or null for row 0
  std::size_t num_registers;
};

// not_finite: one integer, set to 1 when a new value is NaN or infinite and else left alone.
void guided_step(float* registers, const float* noise_pred, const float* noise,
                 std::size_t num_elements, bool has_guidance, double guidance_scale,
                 const StepTable& table, std::int32_t* not_finite, Stream stream);

// scales: [K]; `step` chooses one as in StepTable. latents and out must not overlap.
void scale_duplicate(const float* latents, std::size_t num_elements, const double* scales,
                     const std::int32_t* step, std::size_t copies, float* out, Stream stream);

void images_to_uint8(const float* images, std::size_t batch, std::size_t num_pixels,
                     std::uint8_t* out, std::int32_t* not_finite, Stream stream);

// The same from images of another number type.
void images_to_uint8(const void* images, runtime::DataType type, std::size_t batch,
                     std::size_t num_pixels, std::uint8_t* out, std::int32_t* not_finite,
                     Stream stream);

}  // namespace sdengine::cuda
