#pragma once

#include <cstddef>
#include <cstdint>

namespace sdengine::nn {

// What the values of a map are.
enum class Type : std::uint8_t { Float32, BFloat16, Int64 };
constexpr std::size_t size_of(Type type) {
  return type == Type::Int64 ? 8 : type == Type::Float32 ? 4 : 2;
}

// A feature map in NHWC order, or tokens as one row of pixels. Pixels follow each other `stride`
// values apart, so that a map can be a slice of another's channels.
struct Map {
  char* data = nullptr;
  Type type = Type::Float32;
  int images = 0, height = 0, width = 0, channels = 0;
  std::ptrdiff_t stride = 0;

  std::ptrdiff_t pixels() const { return std::ptrdiff_t{height} * width; }
  std::ptrdiff_t rows() const { return images * pixels(); }
  char* row(std::ptrdiff_t index) const { return data + index * stride * size_of(type); }
};

}  // namespace sdengine::nn
