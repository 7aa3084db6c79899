#include "nn/rare_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/numbers.h"
#include "nn/thread_pool.h"

namespace sdengine::nn {
namespace {

float read(Type type, const char* from) {
  if (type == Type::BFloat16) {
    cpu::BFloat16 half;
    std::memcpy(&half, from, sizeof half);
    return cpu::to_float(half);
  }
  if (type == Type::Int64) {
    std::int64_t integer;
    std::memcpy(&integer, from, sizeof integer);
    return static_cast<float>(integer);
  }
  float value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

void write(Type type, char* to, float value) {
  if (type == Type::BFloat16) {
    const auto half = cpu::from_float<cpu::BFloat16>(value);
    std::memcpy(to, &half, sizeof half);
  } else {
    std::memcpy(to, &value, sizeof value);
  }
}

struct Line {
  const char* from;
  char* to;
};

Line line(const CopyArguments& c, std::ptrdiff_t row) {
  const std::ptrdiff_t n = row / c.sizes[1], h = row % c.sizes[1];
  return {c.from + (n * c.from_strides[0] + h * c.from_strides[1]) *
                       static_cast<std::ptrdiff_t>(size_of(c.from_type)),
          c.to + (n * c.to_strides[0] + h * c.to_strides[1]) *
                     static_cast<std::ptrdiff_t>(size_of(c.to_type))};
}

// Copies in squares of pixels and channels, whichever of the two lies closer together in memory:
// so every cache line that is touched is used up while it is there.
template <Type From, Type To>
void copy_line(const CopyArguments& c, const Line& at) {
  constexpr int kSquare = 32;
  constexpr std::ptrdiff_t from_size = size_of(From), to_size = size_of(To);
  for (int first_w = 0; first_w < c.sizes[2]; first_w += kSquare) {
    const int last_w = std::min(first_w + kSquare, c.sizes[2]);
    for (int first_i = 0; first_i < c.sizes[3]; first_i += kSquare) {
      const int last_i = std::min(first_i + kSquare, c.sizes[3]);
      for (int w = first_w; w < last_w; ++w) {
        const char* from = at.from + w * c.from_strides[2] * from_size;
        char* to = at.to + w * c.to_strides[2] * to_size;
        for (int i = first_i; i < last_i; ++i) {
          write(To, to + i * c.to_strides[3] * to_size,
                read(From, from + i * c.from_strides[3] * from_size));
        }
      }
    }
  }
}

void copy_rows(const CopyArguments& c, std::ptrdiff_t first, std::ptrdiff_t last) {
  using CopyLine = void (*)(const CopyArguments&, const Line&);
  static constexpr CopyLine kLines[3][2] = {
      {&copy_line<Type::Float32, Type::Float32>, &copy_line<Type::Float32, Type::BFloat16>},
      {&copy_line<Type::BFloat16, Type::Float32>, &copy_line<Type::BFloat16, Type::BFloat16>},
      {&copy_line<Type::Int64, Type::Float32>, &copy_line<Type::Int64, Type::BFloat16>}};
  const CopyLine copy_one = kLines[static_cast<int>(c.from_type)][static_cast<int>(c.to_type)];
  for (std::ptrdiff_t row = first; row < last; ++row) copy_one(c, line(c, row));
}

}  // namespace

void sinusoid(const SinusoidArguments& arguments) {
  const Map &x = arguments.x, &out = arguments.out;
  for (std::ptrdiff_t row = 0; row < x.rows(); ++row) {
    for (int column = 0; column < x.channels; ++column) {
      const float t = read(x.type, x.row(row) + column * size_of(x.type));
      char* to = out.row(row) + std::ptrdiff_t{2} * arguments.channels * column * size_of(out.type);
      for (int i = 0; i < arguments.channels; ++i) {
        const double angle = t * arguments.frequencies[i];  // rounded to a float, as in training
        write(out.type, to + i * size_of(out.type), static_cast<float>(std::cos(angle)));
        write(out.type, to + (arguments.channels + i) * size_of(out.type),
              static_cast<float>(std::sin(angle)));
      }
    }
  }
}

void select(const SelectArguments& arguments) {
  const Map &x = arguments.x, &out = arguments.out;
  for (int image = 0; image < x.images; ++image) {
    std::int64_t index;
    std::memcpy(&index, arguments.index.row(image), sizeof index);
    index = std::clamp<std::int64_t>(index, 0, x.pixels() - 1);
    const char* from = x.row(image * x.pixels() + index);
    for (int c = 0; c < x.channels; ++c) {
      write(out.type, out.row(image) + c * size_of(out.type),
            read(x.type, from + c * size_of(x.type)));
    }
  }
}

void copy(const CopyArguments& arguments, ThreadPool& pool) {
  struct Context {
    const CopyArguments& arguments;
    int parts;
  } context{arguments, pool.threads()};
  pool.run(
      [](void* opaque, int part) {
        const auto& [copied, parts] = *static_cast<Context*>(opaque);
        const std::ptrdiff_t rows = std::ptrdiff_t{copied.sizes[0]} * copied.sizes[1];
        copy_rows(copied, rows * part / parts, rows * (part + 1) / parts);
      },
      &context);
}

}  // namespace sdengine::nn
