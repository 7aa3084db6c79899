#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace sdengine::cpu {

// Integer arithmetic, unlike std::isfinite, keeps the loops around it vectorisable.
inline std::uint32_t is_not_finite(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<std::uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
}

inline bool all_finite(const float* values, std::size_t count) {
  std::uint32_t not_finite = 0;
  for (std::size_t i = 0; i < count; ++i) not_finite |= is_not_finite(values[i]);
  return not_finite == 0;
}

}  // namespace sdengine::cpu
