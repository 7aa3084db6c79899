#pragma once

#include <cstdint>
#include <cstring>

namespace sdengine::cpu {

// Integer arithmetic, unlike std::isfinite, keeps the loops around it vectorisable.
inline std::uint32_t is_not_finite(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<std::uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
}

}  // namespace sdengine::cpu
