// LayerNorm over the channels of each row, with the mean taken off before squares are added up.

#include "nn/ops/epilogue.h"
#include "nn/ops/operations.h"
#include "nn/parallel.h"

namespace sdengine::nn::SDENGINE_ISA {
namespace {

template <typename T>
void normalize(const T* from, T* to, const LayerNormArguments& arguments) {
  const int channels = arguments.x.channels;
  Floats total = zeros();
  for (int c = 0; c < channels; c += kLanes) {
    total = add(total, load_some(from + c, least(kLanes, channels - c)));
  }
  const float mean = sum(total) / static_cast<float>(channels);
  const Floats means = set(mean);
  Floats squares = zeros();
  for (int c = 0; c < channels; c += kLanes) {
    const int count = least(kLanes, channels - c);
    const Floats gap = sub(load_some(from + c, count), means);
    squares = fma(gap, gap, squares);
    // Words beyond the end hold the mean's square.
    if (count < kLanes) squares = sub(squares, from_lane(count, mul(gap, gap), zeros()));
  }
  const float variance = sum(squares) / static_cast<float>(channels);
  const Floats inverse = set(1.0f / __builtin_sqrtf(variance + arguments.epsilon));
  for (int c = 0; c < channels; c += kLanes) {
    const int count = least(kLanes, channels - c);
    const Floats scaled = mul(sub(load_some(from + c, count), means), inverse);
    const Floats result =
        fma(scaled, load_some(arguments.weight + c, count), load_some(arguments.bias + c, count));
    store_some(to + c, result, count);
  }
}

}  // namespace

void layer_norm(const LayerNormArguments& arguments, ThreadPool& pool, const Scratch&) {
  const Map &x = arguments.x, &out = arguments.out;
  in_parallel(pool, x.rows(), [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
    for (std::ptrdiff_t row = first; row < last; ++row) {
      if (x.type == Type::BFloat16) {
        normalize(reinterpret_cast<const std::uint16_t*>(x.row(row)),
                  reinterpret_cast<std::uint16_t*>(out.row(row)), arguments);
      } else {
        normalize(reinterpret_cast<const float*>(x.row(row)),
                  reinterpret_cast<float*>(out.row(row)), arguments);
      }
    }
  });
}

}  // namespace sdengine::nn::SDENGINE_ISA
