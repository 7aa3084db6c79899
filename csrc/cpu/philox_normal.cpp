#include "cpu/philox_normal.h"

#include <cmath>

namespace sdengine::cpu {
namespace {

constexpr std::uint32_t kMultiplier0 = 0xD2511F53u;
constexpr std::uint32_t kMultiplier1 = 0xCD9E8D57u;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9u;
constexpr std::uint32_t kWeyl1 = 0xBB67AE85u;

// Words become angles and radii in the middle of their 2^-32 wide cells, so that no logarithm is
// that of zero; the formula is the one that cuRAND documents for its Box-Muller transform.
constexpr float kCell = 2.3283064365386963e-10f;       // 2^-32
constexpr float kAngleCell = 1.4629180792671596e-09f;  // 2 pi 2^-32

float box_muller_sine(std::uint32_t radius_word, std::uint32_t angle_word) {
  const float u = static_cast<float>(radius_word) * kCell + kCell / 2;
  const float v = static_cast<float>(angle_word) * kAngleCell + kAngleCell / 2;
  return std::sqrt(-2.0f * std::log(u)) * std::sin(v);
}

}  // namespace

PhiloxCounter philox4x32_10(PhiloxCounter counter, PhiloxKey key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{kMultiplier0} * counter[0];
    const std::uint64_t product1 = std::uint64_t{kMultiplier1} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

void PhiloxNormal::fill(float* out, std::size_t count) {
  const PhiloxKey key{static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32)};
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t index = i;
    const PhiloxCounter words = philox4x32_10(
        {draws_, 0, static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32)},
        key);
    out[i] = box_muller_sine(words[0], words[1]);
  }
  if (count > 0) ++draws_;
}

}  // namespace sdengine::cpu
