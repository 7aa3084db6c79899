#include "cpu/device.h"

#include <unistd.h>

#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "cpu/philox_normal.h"
#include "cpu/step_kernels.h"
#include "runtime/errors.h"

namespace sdengine::cpu {

using runtime::DataType;
using runtime::MemoryBudgetError;
using runtime::MemoryInfo;
using runtime::RawHandle;
using runtime::StepBuffers;

namespace {

using Work = std::vector<std::function<void()>>;

struct CpuStream {
  bool is_capturing = false;
  Work captured;
};

CpuStream& stream_at(RawHandle stream) { return *reinterpret_cast<CpuStream*>(stream); }

void queue(std::function<void()> work, RawHandle stream) {
  CpuStream& target = stream_at(stream);
  if (target.is_capturing) {
    target.captured.push_back(std::move(work));
  } else {
    work();
  }
}

std::size_t physical_bytes(int pages_name) {
  const long pages = sysconf(pages_name), page_bytes = sysconf(_SC_PAGESIZE);
  if (pages < 0 || page_bytes < 0) return 0;
  return static_cast<std::size_t>(pages) * static_cast<std::size_t>(page_bytes);
}

}  // namespace

void CpuDevice::enqueue(std::function<void()> work, RawHandle stream) {
  queue(
      [this, run = std::move(work)] {
        ++ledger_.networks;
        run();
      },
      stream);
}

void CpuDevice::run_kernel(std::function<void()> kernel, RawHandle stream) {
  queue(
      [this, run = std::move(kernel)] {
        ++ledger_.kernels;
        run();
      },
      stream);
}

MemoryInfo CpuDevice::memory_info() const {
  if (limit_bytes_ == 0) {
    return {physical_bytes(_SC_AVPHYS_PAGES), physical_bytes(_SC_PHYS_PAGES)};
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  return {limit_bytes_ - live_bytes_, limit_bytes_};
}

void* CpuDevice::do_allocate(std::size_t size_bytes) {
  if (num_captures_ > 0) throw DeviceError("allocating memory while a graph is captured");
  const std::lock_guard<std::mutex> lock(mutex_);
  if (limit_bytes_ != 0 && size_bytes > limit_bytes_ - live_bytes_) {
    throw MemoryBudgetError("an allocation", size_bytes, limit_bytes_ - live_bytes_, limit_bytes_);
  }
  void* const block =
      ::operator new(size_bytes, std::align_val_t{runtime::kAlignment}, std::nothrow);
  if (block == nullptr) {
    throw MemoryBudgetError("an allocation", size_bytes, physical_bytes(_SC_AVPHYS_PAGES), 0);
  }
  sizes_[block] = size_bytes;
  live_bytes_ += size_bytes;
  return block;
}

void CpuDevice::do_release(void* block) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = sizes_.find(block);
  live_bytes_ -= found->second;
  sizes_.erase(found);
  ::operator delete(block, std::align_val_t{runtime::kAlignment});
}

void* CpuDevice::allocate_host(std::size_t size_bytes) {
  void* const block =
      ::operator new(size_bytes, std::align_val_t{runtime::kAlignment}, std::nothrow);
  if (block == nullptr) throw OutOfMemoryError("memory of the host for copies");
  return block;
}

void CpuDevice::release_host(void* block) noexcept {
  ::operator delete(block, std::align_val_t{runtime::kAlignment});
}

RawHandle CpuDevice::create_stream() { return reinterpret_cast<RawHandle>(new CpuStream); }

void CpuDevice::destroy_stream(RawHandle stream) noexcept {
  abort_capture(stream);
  delete &stream_at(stream);
}

void CpuDevice::synchronize(RawHandle stream) {
  if (stream_at(stream).is_capturing) throw DeviceError("waiting for a stream that captures");
  ++ledger_.waits;
}

void CpuDevice::upload(void* target, const void* host, std::size_t size_bytes, RawHandle stream) {
  if (size_bytes == 0) return;
  queue(
      [=] {
        ++ledger_.uploads;
        ledger_.uploaded_bytes += size_bytes;
        std::memcpy(target, host, size_bytes);
      },
      stream);
}

void CpuDevice::download(void* host, const void* source, std::size_t size_bytes, RawHandle stream) {
  if (size_bytes == 0) return;
  queue(
      [=] {
        ++ledger_.downloads;
        ledger_.downloaded_bytes += size_bytes;
        std::memcpy(host, source, size_bytes);
      },
      stream);
}

void CpuDevice::fill(void* target, std::uint8_t byte, std::size_t size_bytes, RawHandle stream) {
  if (size_bytes == 0) return;
  queue(
      [=] {
        ++ledger_.fills;
        std::memset(target, byte, size_bytes);
      },
      stream);
}

void CpuDevice::begin_capture(RawHandle stream) {
  CpuStream& target = stream_at(stream);
  if (target.is_capturing) throw DeviceError("beginning a capture on a stream that captures");
  target.is_capturing = true;
  ++num_captures_;
}

RawHandle CpuDevice::end_capture(RawHandle stream) {
  CpuStream& target = stream_at(stream);
  if (!target.is_capturing) throw DeviceError("ending a capture that was not begun");
  auto graph = std::make_unique<Work>(std::exchange(target.captured, {}));
  target.is_capturing = false;
  --num_captures_;
  return reinterpret_cast<RawHandle>(graph.release());
}

void CpuDevice::abort_capture(RawHandle stream) noexcept {
  CpuStream& target = stream_at(stream);
  if (!target.is_capturing) return;
  target.captured.clear();
  target.is_capturing = false;
  --num_captures_;
}

void CpuDevice::launch(RawHandle graph, RawHandle stream) {
  if (stream_at(stream).is_capturing) {
    throw DeviceError("launching a graph on a stream that captures");
  }
  ++ledger_.graph_launches;
  for (const auto& work : *reinterpret_cast<const Work*>(graph)) work();
}

void CpuDevice::destroy_graph(RawHandle graph) noexcept { delete reinterpret_cast<Work*>(graph); }

void CpuDevice::prepare_step(const StepBuffers& buffers, RawHandle stream) {
  run_kernel([buffers] { cpu::prepare_step(buffers); }, stream);
}

void CpuDevice::finish_step(const StepBuffers& buffers, RawHandle stream) {
  run_kernel([buffers] { cpu::finish_step(buffers); }, stream);
}

void CpuDevice::scale(const float* source, std::size_t num_elements, double factor, void* out,
                      DataType type, RawHandle stream) {
  run_kernel([=] { cpu::scale(source, num_elements, factor, out, type); }, stream);
}

void CpuDevice::to_pixels(const void* images, DataType type, std::size_t batch,
                          std::size_t num_pixels, std::uint8_t* out, std::int32_t* not_finite,
                          RawHandle stream) {
  run_kernel([=] { cpu::to_pixels(images, type, batch, num_pixels, out, not_finite); }, stream);
}

void CpuDevice::draw_philox(std::uint64_t seed, std::uint32_t number, float* out, std::size_t count,
                            RawHandle stream) {
  run_kernel([=] { PhiloxNormal::draw(seed, number, out, count); }, stream);
}

}  // namespace sdengine::cpu
