#pragma once

#include "nn/ops/epilogue.h"

namespace sdengine::nn::SDENGINE_ISA {

constexpr float kLength = 32700.0f;  // below 2^15 by more than rounding adds

// Rounds values to 16 bits such that their vector has a length of at most 2^15, and returns what
// one of them counts. With weights of a length of at most 2^16 no sum of products leaves 32 bits.
// Writes whole vectors; values beyond the count are zero.
template <typename Load>
SDENGINE_INLINE float quantize_int16(Load load_at, int count, std::int16_t* to) {
  Floats squares[4] = {zeros(), zeros(), zeros(), zeros()};
  int c = 0;
  for (; c + 4 * kLanes <= count; c += 4 * kLanes) {
    SDENGINE_UNROLL for (int i = 0; i < 4; ++i) {
      const Floats value = load_at(c + i * kLanes, kLanes);
      squares[i] = fma(value, value, squares[i]);
    }
  }
  for (; c < count; c += kLanes) {
    const Floats value = load_at(c, least(kLanes, count - c));
    squares[0] = fma(value, value, squares[0]);
  }
  const float length =
      __builtin_sqrtf(sum(add(add(squares[0], squares[1]), add(squares[2], squares[3]))));
  // Not finite: the factor is zero, and the scale makes every result of the row not a number.
  const Floats factor = set(length > 0.0f ? kLength / length : 0.0f);
  for (c = 0; c < count; c += kLanes) {
    store_int16(to + c, mul(load_at(c, least(kLanes, count - c)), factor));
  }
  return length / kLength;
}

}  // namespace sdengine::nn::SDENGINE_ISA
