#include "cpu/philox_normal.h"

#include <algorithm>
#include <cstring>

#include "common/philox.h"

namespace sdengine::cpu {
namespace {

// Values are made in blocks of this many, whose loops the compiler turns into vector code.
constexpr std::size_t kBlock = 64;

}  // namespace

PhiloxCounter philox4x32_10(PhiloxCounter counter, PhiloxKey key) {
  const philox::Words found =
      philox::rounds({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {found.word[0], found.word[1], found.word[2], found.word[3]};
}

float box_muller_sine(std::uint32_t radius_word, std::uint32_t angle_word) {
  return philox::normal_of(radius_word, angle_word);
}

void PhiloxNormal::fill(float* out, std::size_t count) {
  draw(seed_, draws_, out, count);
  if (count > 0) ++draws_;
}

void PhiloxNormal::draw(std::uint64_t seed, std::uint32_t number, float* out, std::size_t count) {
  std::uint32_t radius_words[kBlock], angle_words[kBlock];
  float values[kBlock];
  for (std::size_t first = 0; first < count; first += kBlock) {
    for (std::size_t i = 0; i < kBlock; ++i) {
      const philox::Words words = philox::words_at(seed, number, first + i);
      radius_words[i] = words.word[0];
      angle_words[i] = words.word[1];
    }
    for (std::size_t i = 0; i < kBlock; ++i) {
      values[i] = philox::normal_of(radius_words[i], angle_words[i]);
    }
    std::memcpy(out + first, values, std::min(kBlock, count - first) * sizeof(float));
  }
}

}  // namespace sdengine::cpu
