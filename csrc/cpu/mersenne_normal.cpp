#include "cpu/mersenne_normal.h"

#include <cmath>

namespace sdengine::cpu {
namespace {

constexpr std::size_t kBlock = 16;
constexpr double kTwoPi = 6.283185307179586476925286766559;

}  // namespace

MersenneNormal::MersenneNormal(std::uint64_t seed) : engine_(static_cast<std::uint32_t>(seed)) {}

// 24 bits, as many as fp32 holds between 0 and 1.
float MersenneNormal::uniform_float() {
  return static_cast<float>(engine_() & 0xffffffu) * (1.0f / 16777216.0f);
}

double MersenneNormal::uniform_double() {
  const std::uint64_t high = engine_();
  const std::uint64_t low = engine_();
  constexpr std::uint64_t mask = (std::uint64_t{1} << 53) - 1;
  return static_cast<double>((high << 32 | low) & mask) * (1.0 / 9007199254740992.0);
}

double MersenneNormal::next_small() {
  if (has_kept_) {
    has_kept_ = false;
    return kept_;
  }
  const double u1 = uniform_double();
  const double u2 = uniform_double();
  const double radius = std::sqrt(-2.0 * std::log1p(-u2));
  const double theta = kTwoPi * u1;
  kept_ = radius * std::sin(theta);
  has_kept_ = true;
  return radius * std::cos(theta);
}

void MersenneNormal::transform_block(float* block) const {
  for (std::size_t j = 0; j < kBlock / 2; ++j) {
    const float u1 = 1.0f - block[j];  // from [0, 1) to (0, 1], whose logarithm is finite
    const float u2 = block[j + kBlock / 2];
    const float radius = std::sqrt(-2.0f * std::log(u1));
    const float theta = static_cast<float>(kTwoPi * static_cast<double>(u2));
    block[j] = radius * std::cos(theta);
    block[j + kBlock / 2] = radius * std::sin(theta);
  }
}

void MersenneNormal::fill(float* out, std::size_t count) {
  if (count < kBlock) {
    for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<float>(next_small());
    return;
  }
  for (std::size_t i = 0; i < count; ++i) out[i] = uniform_float();
  for (std::size_t i = 0; i + kBlock <= count; i += kBlock) transform_block(out + i);
  if (count % kBlock != 0) {
    // The rest has no partners: the last 16 values, some of them already made, are drawn anew.
    float* last = out + count - kBlock;
    for (std::size_t i = 0; i < kBlock; ++i) last[i] = uniform_float();
    transform_block(last);
  }
}

}  // namespace sdengine::cpu
