#include "cpu/philox_normal.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace sdengine::cpu {
namespace {

constexpr std::uint32_t kMultiplier0 = 0xD2511F53u;
constexpr std::uint32_t kMultiplier1 = 0xCD9E8D57u;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9u;
constexpr std::uint32_t kWeyl1 = 0xBB67AE85u;
constexpr int kRounds = 10;

// Values are made in blocks of this many, whose loops the compiler turns into vector code.
constexpr std::size_t kLanes = 64;

// Words become angles and radii in the middle of their 2^-32 wide cells, so that no logarithm is
// that of zero; the formula is the one that cuRAND documents for its Box-Muller transform.
constexpr float kCell = 2.3283064365386963e-10f;       // 2^-32
constexpr float kAngleCell = 1.4629180792671596e-09f;  // 2 pi 2^-32

inline PhiloxCounter rounds_of(PhiloxCounter counter, PhiloxKey key) {
  for (int round = 0; round < kRounds; ++round) {
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

// The logarithm of a normal number of 0 to 1, to about 2 units in the last place: u = 2^e m with m
// between sqrt(1/2) and sqrt(2), and log m = 2 artanh((m - 1) / (m + 1)) as its power series.
inline float log_of(float u) {
  constexpr std::uint32_t kRootHalf = 0x3f3504f3u;
  constexpr std::uint32_t kMantissa = 0x007fffffu;
  std::uint32_t bits;
  std::memcpy(&bits, &u, sizeof bits);
  const std::uint32_t offset = bits - kRootHalf;
  const auto exponent = static_cast<float>(static_cast<std::int32_t>(offset) >> 23);
  bits = (offset & kMantissa) + kRootHalf;
  float m;
  std::memcpy(&m, &bits, sizeof m);
  const float s = (m - 1.0f) / (m + 1.0f);
  const float z = s * s;
  const float series = z * (1.0f / 3 + z * (1.0f / 5 + z * (1.0f / 7 + z * (1.0f / 9))));
  return exponent * 0.693147180559945f + 2.0f * (s + s * series);
}

// The sine of 0 to 2 pi, to about 1e-7: the nearest multiple of pi is taken off in two parts, the
// rest of at most pi / 2 goes through the power series.
inline float sine_of(float angle) {
  constexpr float kPiHigh = 3.14159274f, kPiLow = -8.74227766e-8f;
  const auto half_turns = static_cast<float>(static_cast<std::int32_t>(angle / kPiHigh + 0.5f));
  const float r = (angle - half_turns * kPiHigh) - half_turns * kPiLow;
  const float z = r * r;
  const float high = 1.0f / 362880 + z * (-1.0f / 39916800 + z * (1.0f / 6227020800.0f));
  const float series = z * (-1.0f / 6 + z * (1.0f / 120 + z * (-1.0f / 5040 + z * high)));
  const float sign = 1.0f - 2.0f * half_turns * (2.0f - half_turns);  // 1, -1, 1
  return sign * (r + r * series);
}

inline float normal_of(std::uint32_t radius_word, std::uint32_t angle_word) {
  const float u = static_cast<float>(radius_word) * kCell + kCell / 2;
  const float angle = static_cast<float>(angle_word) * kAngleCell + kAngleCell / 2;
  return std::sqrt(-2.0f * log_of(u)) * sine_of(angle);
}

}  // namespace

PhiloxCounter philox4x32_10(PhiloxCounter counter, PhiloxKey key) {
  return rounds_of(counter, key);
}

float box_muller_sine(std::uint32_t radius_word, std::uint32_t angle_word) {
  return normal_of(radius_word, angle_word);
}

void PhiloxNormal::fill(float* out, std::size_t count) {
  const PhiloxKey key{static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32)};
  std::uint32_t radius_words[kLanes], angle_words[kLanes];
  float values[kLanes];
  for (std::size_t first = 0; first < count; first += kLanes) {
    const std::uint64_t index = first;
    const auto low = static_cast<std::uint32_t>(index);
    const auto high = static_cast<std::uint32_t>(index >> 32);
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
      const PhiloxCounter words = rounds_of({draws_, 0, low + lane, high}, key);
      radius_words[lane] = words[0];
      angle_words[lane] = words[1];
    }
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      values[lane] = normal_of(radius_words[lane], angle_words[lane]);
    }
    std::memcpy(out + first, values, std::min(kLanes, count - first) * sizeof(float));
  }
  if (count > 0) ++draws_;
}

}  // namespace sdengine::cpu
