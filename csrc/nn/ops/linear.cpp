// Linear layers and 1x1 convolutions.

#include <cstring>

#include "nn/ops/gemm.h"
#include "nn/ops/operations.h"
#include "nn/ops/quantize.h"
#include "nn/parallel.h"
#include "nn/scratch.h"

namespace sdengine::nn::SDENGINE_ISA {
namespace {

// Symmetric, 127 levels to each side, a scale for each row; stored with 128 added, because the
// products take one unsigned side.
void quantize(const Map& x, std::ptrdiff_t row, std::uint8_t* to, float* scale, int padded) {
  const char* values = x.row(row);
  Floats most = zeros();
  for (int c = 0; c < x.channels; c += kLanes) {
    most = larger(most, magnitude(load_as(x.type, values, c, x.channels - c)));
  }
  const float peak = largest(most);
  *scale = peak > 0.0f ? peak / 127.0f : 1.0f;
  const Floats factor = set(1.0f / *scale), zero_point = set(128.0f);
  int c = 0;
  for (; c + kLanes <= x.channels; c += kLanes) {
    store_uint8(to + c, fma(load_as(x.type, values, c, kLanes), factor, zero_point));
  }
  for (; c < padded; c += kLanes) {
    std::uint8_t some[kLanes];
    const int count = c < x.channels ? x.channels - c : 0;
    store_uint8(some, fma(load_as(x.type, values, c, count), factor, zero_point));
    std::memcpy(to + c, some, least(kLanes, padded - c));
  }
}

}  // namespace

void linear(const LinearArguments& arguments, ThreadPool& pool, const Scratch& scratch) {
  const Map& x = arguments.x;
  const Panels& weight = arguments.weight;
  const std::ptrdiff_t row_count = x.rows();
  const int row_bytes = static_cast<int>(quantized_row_bytes(weight));
  Rows rows{x.data, static_cast<std::ptrdiff_t>(x.stride * size_of(x.type))};
  if (weight.kind == Kind::Int8 || weight.kind == Kind::Int16) {
    auto* scales = reinterpret_cast<float*>(scratch.shared);
    auto* bytes = reinterpret_cast<std::uint8_t*>(scratch.shared + (row_count * 4 + 63) / 64 * 64);
    in_parallel(pool, row_count, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
      for (std::ptrdiff_t row = first; row < last; ++row) {
        std::uint8_t* to = bytes + row * row_bytes;
        if (weight.kind == Kind::Int8) {
          quantize(x, row, to, scales + row, weight.words() * 4);
        } else {
          const char* values = x.row(row);
          scales[row] =
              quantize_int16([&](int c, int count) { return load_as(x.type, values, c, count); },
                             x.channels, reinterpret_cast<std::int16_t*>(to));
        }
      }
    });
    rows = {reinterpret_cast<const char*>(bytes), row_bytes, scales};
  } else if (x.channels % values_per_word(weight.kind) != 0) {
    // The last pair of a row would reach into the next row.
    char* padded = scratch.shared;
    in_parallel(pool, row_count, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
      for (std::ptrdiff_t row = first; row < last; ++row) {
        std::memset(padded + (row + 1) * row_bytes - 4, 0, 4);
        std::memcpy(padded + row * row_bytes, x.row(row), x.channels * size_of(x.type));
      }
    });
    rows = {padded, row_bytes};
  }
  const auto compute = [&](std::ptrdiff_t first, std::ptrdiff_t last, int panel, int last_panel) {
    const Rows part{rows.data + first * rows.bytes, rows.bytes,
                    rows.scales == nullptr ? nullptr : rows.scales + first};
    multiply_block(part, first, static_cast<int>(last - first), weight, panel, last_panel,
                   arguments.epilogue);
  };
  // Each thread reads the whole of one matrix and its share of the other: the larger is shared.
  const std::size_t weight_bytes = weight.panels() * weight.panel_bytes();
  if (static_cast<std::size_t>(row_count) * row_bytes >= weight_bytes) {
    in_parallel(pool, row_count, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
      compute(first, last, 0, weight.panels());
    });
  } else {
    in_parallel(pool, weight.panels(), [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
      compute(0, row_count, static_cast<int>(first), static_cast<int>(last));
    });
  }
}

}  // namespace sdengine::nn::SDENGINE_ISA
