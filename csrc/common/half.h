#pragma once

#include <cstdint>

namespace sdengine {

// Returns the fp32 of an fp16's bits. Always inlined, because it is compiled once for each
// instruction set; without branches, so that loops around it vectorise.
__attribute__((always_inline)) inline float from_half(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t{half} >> 15 << 31, magnitude = half & 0x7fffu;
  const std::uint32_t bias = 112u << 23, shifted = magnitude << 13;
  const float subnormal = static_cast<float>(static_cast<int>(magnitude)) * 0x1p-24f;
  std::uint32_t small;
  __builtin_memcpy(&small, &subnormal, sizeof small);
  const std::uint32_t large = shifted + (magnitude >= 0x7c00u ? bias + bias : bias);
  const std::uint32_t bits = sign | (magnitude < 0x400u ? small : large);
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace sdengine
