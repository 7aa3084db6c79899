#pragma once

#include <memory>
#include <utility>

#include "runtime/device.h"

// Owners of a device's resources: if a handle exists, its resource is valid, and its device too.
namespace sdengine::runtime {

template <void (Device::*destroy)(RawHandle) noexcept>
class Handle {
 public:
  Handle(std::shared_ptr<Device> device, RawHandle raw) : device_(std::move(device)), raw_(raw) {}
  ~Handle() {
    if (raw_ != 0) ((*device_).*destroy)(raw_);
  }
  Handle(Handle&& other) noexcept
      : device_(other.device_), raw_(std::exchange(other.raw_, RawHandle{0})) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  Handle& operator=(Handle&&) = delete;

  RawHandle raw() const { return raw_; }

 private:
  std::shared_ptr<Device> device_;
  RawHandle raw_;
};

using Stream = Handle<&Device::destroy_stream>;
using Event = Handle<&Device::destroy_event>;
using Graph = Handle<&Device::destroy_graph>;

inline Stream make_stream(const std::shared_ptr<Device>& device) {
  return {device, device->create_stream()};
}

inline Event make_event(const std::shared_ptr<Device>& device) {
  return {device, device->create_event()};
}

// Memory of a device.
class Block {
 public:
  Block(std::shared_ptr<Device> device, std::size_t size_bytes)
      : device_(std::move(device)), data_(device_->allocate(size_bytes)), size_bytes_(size_bytes) {}
  ~Block() { device_->release(data_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void* data() const { return data_; }
  std::size_t size_bytes() const { return size_bytes_; }

 private:
  std::shared_ptr<Device> device_;
  void* data_;
  std::size_t size_bytes_;
};

// Memory of the host for a device's copies.
class HostBlock {
 public:
  HostBlock(std::shared_ptr<Device> device, std::size_t size_bytes)
      : device_(std::move(device)),
        data_(static_cast<unsigned char*>(device_->allocate_host(size_bytes))),
        size_bytes_(size_bytes) {}
  ~HostBlock() { device_->release_host(data_); }
  HostBlock(const HostBlock&) = delete;
  HostBlock& operator=(const HostBlock&) = delete;

  unsigned char* data() const { return data_; }
  std::size_t size_bytes() const { return size_bytes_; }

 private:
  std::shared_ptr<Device> device_;
  unsigned char* data_;
  std::size_t size_bytes_;
};

// Records what `queue_work` queues on the stream. Whatever it throws ends the capture.
template <typename QueueWork>
Graph capture(const std::shared_ptr<Device>& device, RawHandle stream, QueueWork&& queue_work) {
  device->begin_capture(stream);
  try {
    queue_work();
  } catch (...) {
    device->abort_capture(stream);
    throw;
  }
  return {device, device->end_capture(stream)};
}

}  // namespace sdengine::runtime
