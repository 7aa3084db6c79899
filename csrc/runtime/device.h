#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "common/errors.h"
#include "runtime/step_buffers.h"

// What the runtime asks of a device. cpu/device.h and cuda/device.h implement it.
//
// Work is queued on streams and runs in their order; only synchronize, wait_for, allocate and
// release may wait. While a stream captures, queued work is recorded instead of run, and allocating
// or waiting is refused. Failures throw DeviceError or OutOfMemoryError; release, abort_capture and
// the destroy functions never throw. Handles are held by runtime/handles.h; use those.
namespace sdengine::runtime {

struct MemoryInfo {
  std::size_t free_bytes;
  std::size_t total_bytes;
};

// An opaque stream, event or graph of one device; 0 is none.
using RawHandle = std::uintptr_t;

class Device {
 public:
  Device() = default;
  virtual ~Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  virtual std::string name() const = 0;
  // Makes it the calling thread's current device, for libraries that queue on its streams
  // themselves. Everything below does so by itself.
  virtual void make_current() const {}
  virtual MemoryInfo memory_info() const = 0;

  // Returns at least size_bytes, aligned to kAlignment. Throws OutOfMemoryError.
  void* allocate(std::size_t size_bytes);
  void release(void* block) noexcept;
  // Counted since the device was made: a loop that allocates shows here.
  std::size_t num_allocations() const { return num_allocations_; }
  std::size_t num_live_blocks() const { return num_live_blocks_; }

  // Memory of the host that the device copies from and to by itself, while the host goes on.
  // Throws OutOfMemoryError. Releasing never throws.
  virtual void* allocate_host(std::size_t size_bytes) = 0;
  virtual void release_host(void* block) noexcept = 0;

  virtual RawHandle create_stream() = 0;
  virtual void destroy_stream(RawHandle stream) noexcept = 0;
  virtual void synchronize(RawHandle stream) = 0;

  virtual RawHandle create_event() = 0;
  virtual void destroy_event(RawHandle event) noexcept = 0;
  virtual void record(RawHandle event, RawHandle stream) = 0;
  // Whether all that was queued before the last record has run; true when never recorded.
  virtual bool is_done(RawHandle event) = 0;
  virtual void wait_for(RawHandle event) = 0;

  // The host memory may be reused as soon as upload returns; of upload_pinned, whose source
  // allocate_host gave, when the copy has run. download has filled it only after synchronize.
  virtual void upload(void* target, const void* host, std::size_t size_bytes, RawHandle stream) = 0;
  virtual void upload_pinned(void* target, const void* host, std::size_t size_bytes,
                             RawHandle stream) = 0;
  virtual void download(void* host, const void* source, std::size_t size_bytes,
                        RawHandle stream) = 0;
  virtual void fill(void* target, std::uint8_t byte, std::size_t size_bytes, RawHandle stream) = 0;

  virtual void begin_capture(RawHandle stream) = 0;
  virtual RawHandle end_capture(RawHandle stream) = 0;
  // Ends a capture whose recording failed and drops what it holds.
  virtual void abort_capture(RawHandle stream) noexcept = 0;
  virtual void launch(RawHandle graph, RawHandle stream) = 0;
  virtual void destroy_graph(RawHandle graph) noexcept = 0;

  // Queues sample = c_in * registers[0], once per copy, and timestep = t, both of the state's row;
  // nothing behind the table's last.
  virtual void prepare_step(const StepBuffers& buffers, RawHandle stream) = 0;
  // Queues guidance and the step of the state's row in place, moves the state to the next row, and
  // does for that what prepare_step does.
  virtual void finish_step(const StepBuffers& buffers, RawHandle stream) = 0;

  // Queues out = factor * source, [num_elements] of `type`.
  virtual void scale(const float* source, std::size_t num_elements, double factor, void* out,
                     DataType type, RawHandle stream) = 0;
  // Queues images [batch,3,num_pixels] of -1 to 1 as pixels [batch,num_pixels,3]; not_finite, one
  // integer of the device, becomes 1 where a value is NaN or infinite and else stays.
  virtual void to_pixels(const void* images, DataType type, std::size_t batch,
                         std::size_t num_pixels, std::uint8_t* out, std::int32_t* not_finite,
                         RawHandle stream) = 0;
  // Queues cpu::PhiloxNormal::draw of a seed's draw `number` into out [count].
  virtual void draw_philox(std::uint64_t seed, std::uint32_t number, float* out, std::size_t count,
                           RawHandle stream) = 0;

 protected:
  virtual void* do_allocate(std::size_t size_bytes) = 0;
  virtual void do_release(void* block) noexcept = 0;

 private:
  std::atomic<std::size_t> num_allocations_{0};
  std::atomic<std::size_t> num_live_blocks_{0};
};

inline void* Device::allocate(std::size_t size_bytes) {
  void* const block = do_allocate(size_bytes);
  ++num_allocations_;
  ++num_live_blocks_;
  return block;
}

inline void Device::release(void* block) noexcept {
  do_release(block);
  --num_live_blocks_;
}

}  // namespace sdengine::runtime
