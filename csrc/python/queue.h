#pragma once

#include <memory>
#include <string>
#include <utility>

#include "python/runtime_types.h"

namespace sdengine::python {

// A stream, and what is queued on it beside networks and steps.
class Queue {
 public:
  explicit Queue(std::shared_ptr<runtime::MemoryPool> pool)
      : pool_(std::move(pool)),
        stream_(std::make_shared<const runtime::Stream>(runtime::make_stream(pool_->device()))) {}

  runtime::RawHandle handle() const { return stream_->raw(); }
  const std::shared_ptr<const runtime::Stream>& stream() const { return stream_; }

  void synchronize() const {
    const pybind11::gil_scoped_release unlocked;
    device().synchronize(handle());
  }

  void upload(const std::string& set, const std::string& region,
              const pybind11::array& array) const {
    if ((array.flags() & pybind11::array::c_style) == 0) {
      throw pybind11::value_error("array: is not C-contiguous; pass numpy.ascontiguousarray of it");
    }
    const auto size_bytes = static_cast<std::size_t>(array.nbytes());
    void* const target = region_bytes(*pool_, set, region, 0, size_bytes);
    const void* const source = array.data();
    const pybind11::gil_scoped_release unlocked;
    device().upload(target, source, size_bytes, handle());
  }

  void clear(const std::string& set, const std::string& region) const {
    void* const target = region_bytes(*pool_, set, region, 0, 0);
    std::size_t size_bytes = 0;
    for (const runtime::Region& planned : pool_->plan(set).regions) {
      if (planned.name == region) size_bytes = planned.size_bytes;
    }
    const pybind11::gil_scoped_release unlocked;
    device().fill(target, 0, size_bytes, handle());
  }

  void download(const std::string& set, const std::string& region, pybind11::array array) const {
    if ((array.flags() & pybind11::array::c_style) == 0 || !array.writeable()) {
      throw pybind11::value_error("array: must be C-contiguous and writable");
    }
    const auto size_bytes = static_cast<std::size_t>(array.nbytes());
    const void* const source = region_bytes(*pool_, set, region, 0, size_bytes);
    void* const target = array.mutable_data();
    const pybind11::gil_scoped_release unlocked;
    device().download(target, source, size_bytes, handle());
    device().synchronize(handle());
  }

  void scale(const std::string& set, const std::string& source, std::size_t first,
             std::size_t count, double factor, const std::string& target,
             const std::string& dtype) const {
    const runtime::DataType type = type_of(dtype);
    const void* const from =
        region_bytes(*pool_, set, source, first * sizeof(float), count * sizeof(float));
    void* const out = region_bytes(*pool_, set, target, 0, count * size_of(type));
    const pybind11::gil_scoped_release unlocked;
    device().scale(static_cast<const float*>(from), count, factor, out, type, handle());
  }

  const std::shared_ptr<runtime::MemoryPool>& pool() const { return pool_; }

 private:
  runtime::Device& device() const { return *pool_->device(); }

  std::shared_ptr<runtime::MemoryPool> pool_;
  std::shared_ptr<const runtime::Stream> stream_;
};

}  // namespace sdengine::python
