#pragma once

#include <cstdint>
#include <mutex>

#include "cpu/mersenne_normal.h"
#include "cpu/philox_normal.h"
#include "python/arrays.h"

namespace sdengine::python {

// A generator that threads may share: a draw is never interleaved with another.
template <typename Generator>
class SharedNormal {
 public:
  explicit SharedNormal(std::uint64_t seed) : generator_(seed) {}

  void fill(pybind11::array out) {
    float* const values = output<float>("out", out);
    const auto count = static_cast<std::size_t>(out.size());
    const pybind11::gil_scoped_release unlocked;
    draw(values, count);
  }

  // The same without Python.
  void draw(float* values, std::size_t count) {
    const std::lock_guard<std::mutex> lock(mutex_);
    generator_.fill(values, count);
  }

  // Calls use(generator) alone.
  template <typename Use>
  auto with(const Use& use) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return use(generator_);
  }

 private:
  Generator generator_;
  std::mutex mutex_;
};

using SharedMersenne = SharedNormal<cpu::MersenneNormal>;
using SharedPhilox = SharedNormal<cpu::PhiloxNormal>;

}  // namespace sdengine::python
