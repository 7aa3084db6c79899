#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace sdengine::cpu {

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

// Ten rounds of Philox4x32: four random words from a counter and a key.
//
// Source: "Parallel Random Numbers: As Easy as 1, 2, 3" (Salmon et al. 2011), section 3.3.
PhiloxCounter philox4x32_10(PhiloxCounter counter, PhiloxKey key);

// The sine branch of the Box-Muller transform of two words: a standard normal value.
//
// Its logarithm and sine are our own, so that the values depend neither on the math library nor on
// the processor.
float box_muller_sine(std::uint32_t radius_word, std::uint32_t angle_word);

// Draws standard normal fp32 values as torch's CUDA generator does for torch.randn: value i of draw
// j comes from counter (j, 0, i, 0).
//
// torch starts one thread a value, in blocks of 256, until the device is full: multiprocessors x
// floor(threads of one / 256) x 256 of them. Draws of at most so many values are the same on every
// device and the same as here. In larger ones torch's threads make several values each, so that
// those depend on the device; here they go on by the rule above, as on a device that is never full.
class PhiloxNormal {
 public:
  explicit PhiloxNormal(std::uint64_t seed) : seed_(seed) {}

  // Writes `count` values, the generator's next draw.
  void fill(float* out, std::size_t count);

  // Writes `count` values of a seed's draw, counted from 0.
  static void draw(std::uint64_t seed, std::uint32_t number, float* out, std::size_t count);

  std::uint64_t seed() const { return seed_; }
  // Returns the number of the next draw and counts it as taken.
  std::uint32_t take() { return draws_++; }

 private:
  std::uint64_t seed_;
  std::uint32_t draws_ = 0;
};

}  // namespace sdengine::cpu
