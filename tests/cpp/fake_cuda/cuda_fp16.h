#pragma once

#include <cmath>
#include <cstdint>

// IEEE 754 binary16 as the toolkit's type; conversions round to nearest, ties to even.
struct __half {
  std::uint16_t bits;
};

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float sign = value.bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction != 0 ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
}

inline __half __float2half(float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return {0x7fff};
  if (magnitude >= 65520.0f) return {static_cast<std::uint16_t>(sign | 0x7c00)};
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  // Units of the last place: 2^-24 for subnormal numbers, 11 significant bits for the others.
  const int unit = exponent - 11 > -24 ? exponent - 11 : -24;
  const auto units = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(magnitude, -unit)));
  // A carry out of the fraction moves into the exponent by itself.
  const std::uint32_t bits =
      units < 1024 ? units : (static_cast<std::uint32_t>(unit + 24) << 10) + units;
  return {static_cast<std::uint16_t>(sign | bits)};
}
