// What is left of additions and activations after the others have taken theirs along.

#include "nn/ops/lone_activations.h"
#include "nn/ops/operations.h"
#include "nn/parallel.h"

namespace sdengine::nn::SDENGINE_ISA {
namespace {

template <Activation A>
void activate_rows(const ActivationArguments& arguments, ThreadPool& pool) {
  const Map &x = arguments.x, &out = arguments.out;
  in_parallel(pool, x.rows(), [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
    for (std::ptrdiff_t row = first; row < last; ++row) {
      for (int c = 0; c < x.channels; c += kLanes) {
        const int count = least(kLanes, x.channels - c);
        store_as(out.type, out.row(row), c,
                 activate_alone<A>(load_as(x.type, x.row(row), c, count)), count);
      }
    }
  });
}

}  // namespace

void add(const AddArguments& arguments, ThreadPool& pool, const Scratch&) {
  const Map &a = arguments.a, &b = arguments.b, &out = arguments.out;
  const Floats scale = set(arguments.scale);
  const bool one_image = b.images == 1 && a.images > 1;
  const bool one_row = b.pixels() == 1 && a.pixels() > 1;
  in_parallel(pool, a.rows(), [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
    for (std::ptrdiff_t row = first; row < last; ++row) {
      const std::ptrdiff_t other = one_row ? row / a.pixels() : one_image ? row % b.rows() : row;
      for (int c = 0; c < a.channels; c += kLanes) {
        const int count = least(kLanes, a.channels - c);
        const Floats sum = fma(load_as(b.type, b.row(other), c, count), scale,
                               load_as(a.type, a.row(row), c, count));
        store_as(out.type, out.row(row), c, sum, count);
      }
    }
  });
}

void activation(const ActivationArguments& arguments, ThreadPool& pool, const Scratch&) {
  switch (arguments.activation) {
    case Activation::Silu:
      return activate_rows<Activation::Silu>(arguments, pool);
    case Activation::Gelu:
      return activate_rows<Activation::Gelu>(arguments, pool);
    case Activation::QuickGelu:
      return activate_rows<Activation::QuickGelu>(arguments, pool);
    case Activation::Relu:
      return activate_rows<Activation::Relu>(arguments, pool);
#define SDENGINE_CASE(Name, word, function) \
  case Activation::Name:                    \
    return activate_rows<Activation::Name>(arguments, pool);
      SDENGINE_LONE_ACTIVATIONS(SDENGINE_CASE)
#undef SDENGINE_CASE
    default:
      return activate_rows<Activation::None>(arguments, pool);
  }
}

}  // namespace sdengine::nn::SDENGINE_ISA
