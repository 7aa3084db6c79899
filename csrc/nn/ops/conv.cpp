// Convolutions of any kernel and stride: the pixels under the kernel are gathered into rows of a
// small block, which is then multiplied like a linear layer's.

#include <cstring>

#include "nn/ops/gemm.h"
#include "nn/ops/operations.h"
#include "nn/ops/quantize.h"
#include "nn/parallel.h"
#include "nn/scratch.h"

namespace sdengine::nn::SDENGINE_ISA {
namespace {

void gather(const ConvArguments& conv, std::ptrdiff_t row, char* to, int row_bytes) {
  const Map& x = conv.x;
  const Map& out = conv.epilogue.out;
  const int shift = conv.upsample ? 1 : 0;
  const int height = x.height << shift, width = x.width << shift;
  const std::ptrdiff_t image = row / out.pixels(), pixel = row % out.pixels();
  const int top = static_cast<int>(pixel / out.width) * conv.stride - conv.padding;
  const int left = static_cast<int>(pixel % out.width) * conv.stride - conv.padding;
  const std::size_t bytes = x.channels * size_of(x.type);
  // The last word may be wider than what is left of the row.
  std::memset(to + row_bytes - 4, 0, 4);
  for (int dy = 0; dy < conv.kernel; ++dy) {
    for (int dx = 0; dx < conv.kernel; ++dx) {
      const int y = place_read(top + dy, height, conv.wraps.down);
      const int at = place_read(left + dx, width, conv.wraps.across);
      if (y < 0 || at < 0) {
        std::memset(to, 0, bytes);
      } else {
        const std::ptrdiff_t from = (image * x.height + (y >> shift)) * x.width + (at >> shift);
        std::memcpy(to, x.row(from), bytes);
      }
      to += bytes;
    }
  }
}

}  // namespace

void conv(const ConvArguments& arguments, ThreadPool& pool, const Scratch& scratch) {
  const Panels& weight = arguments.weight;
  const Epilogue& epilogue = arguments.epilogue;
  const std::ptrdiff_t row_count = epilogue.out.rows();
  // A row of 16-bit weights is gathered as it is and rounded afterwards.
  const int row_bytes = weight.kind == Kind::Int16
                            ? static_cast<int>((weight.k * size_of(arguments.x.type) + 3) / 4 * 4)
                            : weight.words() * 4;
  const auto rounded_bytes = static_cast<std::ptrdiff_t>(quantized_row_bytes(weight));
  const auto compute = [&](std::ptrdiff_t first, std::ptrdiff_t last, int panel, int last_panel,
                           int thread) {
    char* block = scratch.of(thread);
    char* rounded = block + gathered_bytes(weight);
    auto* scales = reinterpret_cast<float*>(rounded + kGatheredRows * rounded_bytes);
    for (std::ptrdiff_t row = first; row < last; row += kGatheredRows) {
      const int count = static_cast<int>(last - row < kGatheredRows ? last - row : kGatheredRows);
      for (int r = 0; r < count; ++r) {
        char* gathered = block + r * row_bytes;
        gather(arguments, row + r, gathered, row_bytes);
        if (weight.kind != Kind::Int16) continue;
        const Type type = arguments.x.type;
        scales[r] =
            quantize_int16([&](int c, int some) { return load_as(type, gathered, c, some); },
                           weight.k, reinterpret_cast<std::int16_t*>(rounded + r * rounded_bytes));
      }
      if (weight.kind == Kind::Int16) {
        multiply_block({rounded, rounded_bytes, scales}, row, count, weight, panel, last_panel,
                       epilogue);
      } else {
        multiply_block({block, row_bytes}, row, count, weight, panel, last_panel, epilogue);
      }
    }
  };
  const std::size_t weight_bytes = weight.panels() * weight.panel_bytes();
  if (static_cast<std::size_t>(row_count) * row_bytes >= weight_bytes) {
    in_parallel(pool, row_count, [&](std::ptrdiff_t first, std::ptrdiff_t last, int thread) {
      compute(first, last, 0, weight.panels(), thread);
    });
  } else {
    in_parallel(pool, weight.panels(), [&](std::ptrdiff_t first, std::ptrdiff_t last, int thread) {
      compute(0, row_count, static_cast<int>(first), static_cast<int>(last), thread);
    });
  }
}

}  // namespace sdengine::nn::SDENGINE_ISA
