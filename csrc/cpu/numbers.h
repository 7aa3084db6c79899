#pragma once

#include <cstdint>
#include <cstring>

// The number types of networks on the host, read and written as fp32. Conversions round to nearest,
// ties to even, as the hardware's do.
namespace sdengine::cpu {

// IEEE 754 binary16.
struct Half {
  std::uint16_t bits;
};

// The upper half of an fp32.
struct BFloat16 {
  std::uint16_t bits;
};

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) { return float_of(std::uint32_t{value.bits} << 16); }

inline float to_float(Half value) {
  const std::uint32_t sign = std::uint32_t{value.bits} >> 15 << 31;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  // Infinity and NaN keep their fraction.
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // Numbers that are subnormal here are normal in fp32: 2^-24 times an integer.
  if (magnitude < 0x400u) {
    const float small = static_cast<float>(magnitude) * 0x1p-24f;
    return float_of(sign | bits_of(small));
  }
  return float_of(sign | ((magnitude << 13) + ((127u - 15u) << 23)));
}

template <typename T>
T from_float(float value);

template <>
inline float from_float<float>(float value) {
  return value;
}

template <>
inline BFloat16 from_float<BFloat16>(float value) {
  const std::uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0u};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <>
inline Half from_float<Half>(float value) {
  const std::uint32_t bits = bits_of(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 31 << 15);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7e00u};
  std::uint32_t rounded;
  if (magnitude < (127u - 14u) << 23) {
    // Added to 1/2, the number's last place is 2^-24, that of the subnormal numbers.
    rounded = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  } else if (magnitude < (127u + 16u) << 23) {
    // A carry out of the fraction moves into the exponent by itself, at the end into infinity.
    rounded = (magnitude - ((127u - 15u) << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  } else {
    rounded = 0x7c00u;
  }
  return {static_cast<std::uint16_t>(sign | rounded)};
}

}  // namespace sdengine::cpu
