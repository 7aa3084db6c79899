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

  pybind11::array_t<std::uint8_t> to_pixels(const std::string& set, const std::string& images,
                                            const std::string& dtype, pybind11::ssize_t height,
                                            pybind11::ssize_t width, const std::string& pixels,
                                            const std::string& flag) const {
    pybind11::array_t<std::uint8_t> found({height, width, pybind11::ssize_t{3}});
    const auto num_pixels = static_cast<std::size_t>(height * width);
    const runtime::DataType type = type_of(dtype);
    const void* const from = region_bytes(*pool_, set, images, 0, 3 * num_pixels * size_of(type));
    auto* const levels = region_bytes(*pool_, set, pixels, 0, 3 * num_pixels);
    void* const place = region_bytes(*pool_, set, flag, 0, sizeof(std::int32_t));
    std::uint8_t* const target = found.mutable_data();
    std::int32_t not_finite = 0;
    {
      const pybind11::gil_scoped_release unlocked;
      device().fill(place, 0, sizeof not_finite, handle());
      device().to_pixels(from, type, 1, num_pixels, levels, static_cast<std::int32_t*>(place),
                         handle());
      device().download(&not_finite, place, sizeof not_finite, handle());
      device().download(target, levels, 3 * num_pixels, handle());
      device().synchronize(handle());
    }
    if (not_finite != 0) throw NonFiniteError("images: contain NaN or infinity");
    return found;
  }

 private:
  runtime::Device& device() const { return *pool_->device(); }

  std::shared_ptr<runtime::MemoryPool> pool_;
  std::shared_ptr<const runtime::Stream> stream_;
};

}  // namespace sdengine::python
