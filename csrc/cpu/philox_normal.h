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

// Draws standard normal fp32 values as torch's CUDA generator does for torch.randn: value i of draw
// j comes from counter (j, 0, i, 0). On a device every value has a thread of its own as long as the
// device can hold that many threads, which is 65,536 (latents of 1024 x 1024 pixels) on all with 32
// multiprocessors of 2048 threads or more; beyond that torch's own values depend on the device.
class PhiloxNormal {
 public:
  explicit PhiloxNormal(std::uint64_t seed) : seed_(seed) {}

  // Writes `count` values, the generator's next draw.
  void fill(float* out, std::size_t count);

 private:
  std::uint64_t seed_;
  std::uint32_t draws_ = 0;
};

}  // namespace sdengine::cpu
