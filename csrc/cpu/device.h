#pragma once

#include <functional>
#include <mutex>
#include <unordered_map>

#include "runtime/device.h"

namespace sdengine::cpu {

// Counts of what a device did, in a graph or by itself.
struct Ledger {
  std::atomic<std::size_t> uploads{0}, uploaded_bytes{0}, downloads{0}, downloaded_bytes{0};
  std::atomic<std::size_t> fills{0}, kernels{0}, networks{0}, graph_launches{0}, waits{0};
};

// The processor as a device: work runs when it is queued, a captured graph is a list of functions.
// It refuses what a GPU refuses during capture, so that code which works here works there.
class CpuDevice final : public runtime::Device {
 public:
  // limit_bytes: what may be allocated at once; 0 for what the machine has.
  explicit CpuDevice(std::size_t limit_bytes = 0) : limit_bytes_(limit_bytes) {}

  // Queues any function: the way a network comes into a stream or a graph here.
  void enqueue(std::function<void()> work, runtime::RawHandle stream);

  std::string name() const override { return "CPU"; }
  runtime::MemoryInfo memory_info() const override;

  void* allocate_host(std::size_t size_bytes) override;
  void release_host(void* block) noexcept override;

  runtime::RawHandle create_stream() override;
  void destroy_stream(runtime::RawHandle stream) noexcept override;
  void synchronize(runtime::RawHandle stream) override;

  // What was done since the device was made.
  const Ledger& ledger() const { return ledger_; }

  // All work is done once it is queued, so an event has nothing to remember.
  runtime::RawHandle create_event() override { return 1; }
  void destroy_event(runtime::RawHandle) noexcept override {}
  void record(runtime::RawHandle, runtime::RawHandle) override {}
  bool is_done(runtime::RawHandle) override { return true; }
  void wait_for(runtime::RawHandle) override { ++ledger_.waits; }

  void upload(void* target, const void* host, std::size_t size_bytes,
              runtime::RawHandle stream) override;
  void upload_pinned(void* target, const void* host, std::size_t size_bytes,
                     runtime::RawHandle stream) override {
    upload(target, host, size_bytes, stream);
  }
  void download(void* host, const void* source, std::size_t size_bytes,
                runtime::RawHandle stream) override;
  void fill(void* target, std::uint8_t byte, std::size_t size_bytes,
            runtime::RawHandle stream) override;

  void begin_capture(runtime::RawHandle stream) override;
  runtime::RawHandle end_capture(runtime::RawHandle stream) override;
  void abort_capture(runtime::RawHandle stream) noexcept override;
  void launch(runtime::RawHandle graph, runtime::RawHandle stream) override;
  void destroy_graph(runtime::RawHandle graph) noexcept override;

  void prepare_step(const runtime::StepBuffers& buffers, runtime::RawHandle stream) override;
  void finish_step(const runtime::StepBuffers& buffers, runtime::RawHandle stream) override;
  void scale(const float* source, std::size_t num_elements, double factor, void* out,
             runtime::DataType type, runtime::RawHandle stream) override;
  void to_pixels(const void* images, runtime::DataType type, std::size_t batch,
                 std::size_t num_pixels, std::uint8_t* out, std::int32_t* not_finite,
                 runtime::RawHandle stream) override;
  void draw_philox(std::uint64_t seed, std::uint32_t number, float* out, std::size_t count,
                   runtime::RawHandle stream) override;

 protected:
  void* do_allocate(std::size_t size_bytes) override;
  void do_release(void* block) noexcept override;

 private:
  // Queues one of the device's own kernels.
  void run_kernel(std::function<void()> kernel, runtime::RawHandle stream);

  const std::size_t limit_bytes_;
  Ledger ledger_;
  std::atomic<int> num_captures_{0};
  mutable std::mutex mutex_;  // guards the two below
  std::unordered_map<void*, std::size_t> sizes_;
  std::size_t live_bytes_ = 0;
};

}  // namespace sdengine::cpu
