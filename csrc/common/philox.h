#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// Philox4x32-10 and the sine branch of the Box-Muller transform, for processors and GPUs alike. The
// logarithm and the sine are our own and every operation is one that IEEE 754 rounds, so that the
// values depend neither on a math library nor on the device; compile without contraction.
//
// Source: "Parallel Random Numbers: As Easy as 1, 2, 3" (Salmon et al. 2011), section 3.3; cuRAND's
// documented Box-Muller transform.
namespace sdengine::philox {

#ifdef __CUDACC__
#define SDENGINE_ANYWHERE __host__ __device__ inline
#else
#define SDENGINE_ANYWHERE inline
#endif

struct Words {
  std::uint32_t word[4];
};

SDENGINE_ANYWHERE Words rounds(Words counter, std::uint32_t key0, std::uint32_t key1) {
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = kMultiplier0 * counter.word[0];
    const std::uint64_t product1 = kMultiplier1 * counter.word[2];
    counter = {{static_cast<std::uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<std::uint32_t>(product1),
                static_cast<std::uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<std::uint32_t>(product0)}};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

// The logarithm of a normal number of 0 to 1, to about 2 units in the last place: u = 2^e m with m
// between sqrt(1/2) and sqrt(2), and log m = 2 artanh((m - 1) / (m + 1)) as its power series.
SDENGINE_ANYWHERE float log_of(float u) {
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
SDENGINE_ANYWHERE float sine_of(float angle) {
  constexpr float kPiHigh = 3.14159274f, kPiLow = -8.74227766e-8f;
  const auto half_turns = static_cast<float>(static_cast<std::int32_t>(angle / kPiHigh + 0.5f));
  const float r = (angle - half_turns * kPiHigh) - half_turns * kPiLow;
  const float z = r * r;
  const float high = 1.0f / 362880 + z * (-1.0f / 39916800 + z * (1.0f / 6227020800.0f));
  const float series = z * (-1.0f / 6 + z * (1.0f / 120 + z * (-1.0f / 5040 + z * high)));
  const float sign = 1.0f - 2.0f * half_turns * (2.0f - half_turns);  // 1, -1, 1
  return sign * (r + r * series);
}

// A standard normal value of two words. They become angles and radii in the middle of their 2^-32
// wide cells, so that no logarithm is that of zero.
SDENGINE_ANYWHERE float normal_of(std::uint32_t radius_word, std::uint32_t angle_word) {
  constexpr float kCell = 2.3283064365386963e-10f;       // 2^-32
  constexpr float kAngleCell = 1.4629180792671596e-09f;  // 2 pi 2^-32
  const float u = static_cast<float>(radius_word) * kCell + kCell / 2;
  const float angle = static_cast<float>(angle_word) * kAngleCell + kAngleCell / 2;
  return std::sqrt(-2.0f * log_of(u)) * sine_of(angle);
}

// Words of value `index` of a seed's draw: two of them make the value.
SDENGINE_ANYWHERE Words words_at(std::uint64_t seed, std::uint32_t draw, std::uint64_t index) {
  const auto low = static_cast<std::uint32_t>(index);
  const auto high = static_cast<std::uint32_t>(index >> 32);
  return rounds({{draw, 0, low, high}}, static_cast<std::uint32_t>(seed),
                static_cast<std::uint32_t>(seed >> 32));
}

}  // namespace sdengine::philox
