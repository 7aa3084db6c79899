#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "python/queue.h"

namespace sdengine::python {

// Images that a decoder makes one after the other in the same memory: their pixels are queued, come
// down to pinned memory while the next image is decoded, and are waited for once.
class PixelBatch {
 public:
  PixelBatch(std::shared_ptr<Queue> queue, std::string set, const std::string& flag,
             std::size_t count, std::size_t height, std::size_t width)
      : queue_(std::move(queue)),
        set_(std::move(set)),
        count_(count),
        height_(height),
        width_(width),
        flag_(region_bytes(*queue_->pool(), set_, flag, 0, sizeof(std::int32_t))),
        host_(queue_->pool()->host_memory("pixels", sizeof(std::int32_t) + count * image_bytes())) {
    const pybind11::gil_scoped_release unlocked;
    device().fill(flag_, 0, sizeof(std::int32_t), queue_->handle());
  }

  ~PixelBatch() {
    if (is_finished_) return;
    try {
      device().synchronize(queue_->handle());  // what is queued still writes the host's memory
    } catch (const DeviceError&) {
      // A device that failed writes nothing any more.
    }
  }

  PixelBatch(const PixelBatch&) = delete;
  PixelBatch& operator=(const PixelBatch&) = delete;

  void add(const std::string& images, const std::string& dtype, const std::string& pixels) {
    if (num_added_ == count_) {
      throw pybind11::value_error("add: the batch has its " + std::to_string(count_) + " images");
    }
    const runtime::DataType type = type_of(dtype);
    const std::size_t num_pixels = height_ * width_;
    const auto& pool = *queue_->pool();
    const void* const from = region_bytes(pool, set_, images, 0, 3 * num_pixels * size_of(type));
    auto* const levels = region_bytes(pool, set_, pixels, 0, image_bytes());
    unsigned char* const target = image(num_added_++);
    const pybind11::gil_scoped_release unlocked;
    device().to_pixels(from, type, 1, num_pixels, levels, reinterpret_cast<std::int32_t*>(flag_),
                       queue_->handle());
    device().download(target, levels, image_bytes(), queue_->handle());
  }

  pybind11::array_t<std::uint8_t> finish() {
    if (num_added_ != count_ || is_finished_) {
      throw pybind11::value_error("finish: " + std::to_string(num_added_) + " of " +
                                  std::to_string(count_) + " images were added, or it is done");
    }
    pybind11::array_t<std::uint8_t> found({count_, height_, width_, std::size_t{3}});
    std::uint8_t* const target = found.mutable_data();
    std::int32_t not_finite = 0;
    {
      const pybind11::gil_scoped_release unlocked;
      device().download(host_->data(), flag_, sizeof not_finite, queue_->handle());
      device().synchronize(queue_->handle());
      std::memcpy(&not_finite, host_->data(), sizeof not_finite);
      std::memcpy(target, image(0), count_ * image_bytes());
    }
    is_finished_ = true;
    if (not_finite != 0) throw NonFiniteError("images: contain NaN or infinity");
    return found;
  }

 private:
  std::size_t image_bytes() const { return 3 * height_ * width_; }
  // Of the host's memory, which begins with whether a value was not finite.
  unsigned char* image(std::size_t index) const {
    return host_->data() + sizeof(std::int32_t) + index * image_bytes();
  }
  runtime::Device& device() const { return *queue_->pool()->device(); }

  std::shared_ptr<Queue> queue_;
  const std::string set_;
  const std::size_t count_, height_, width_;
  unsigned char* const flag_;
  std::shared_ptr<const runtime::HostBlock> host_;
  std::size_t num_added_ = 0;
  bool is_finished_ = false;
};

}  // namespace sdengine::python
