#pragma once

#include <cstddef>
#include <cstdint>
#include <random>

namespace sdengine::cpu {

// Draws standard normal fp32 values, in the order and with the methods that torch's CPU generator
// uses for torch.randn, so that a seed means the same picture in both.
//
// Source: "Mersenne Twister" (Matsumoto and Nishimura 1998); "A Note on the Generation of Random
// Normal Deviates" (Box and Muller 1958).
class MersenneNormal {
 public:
  // Only the seed's low 32 bits count.
  explicit MersenneNormal(std::uint64_t seed);

  // Writes `count` values. Draws of 16 values and more pair the values of blocks of 16; smaller
  // ones work in double and keep the second value of a pair for the next small draw.
  void fill(float* out, std::size_t count);

 private:
  float uniform_float();
  double uniform_double();
  double next_small();
  void transform_block(float* block) const;

  std::mt19937 engine_;
  double kept_ = 0.0;
  bool has_kept_ = false;
};

}  // namespace sdengine::cpu
