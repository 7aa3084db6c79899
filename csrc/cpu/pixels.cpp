#include <algorithm>
#include <cstring>

#include "cpu/finite.h"
#include "cpu/kernels.h"

namespace sdengine::cpu {
namespace {

constexpr std::size_t kBlock = 512;

std::uint32_t to_level(float value) {
  // Written so that NaN becomes 0.
  float unit = value * 0.5f + 0.5f;
  unit = unit > 0.0f ? unit : 0.0f;
  unit = unit < 1.0f ? unit : 1.0f;
  // Floats of 2^23 and more are whole: the sum rounds halves to even and ends in the level's bits.
  // std::nearbyint is a call per value on processors taken to have no more than SSE2.
  const float rounded = unit * 255.0f + 8388608.0f;
  std::uint32_t bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  return bits & 0xffu;
}

}  // namespace

void scale_duplicate(const float* latents, std::size_t num_elements, float scale,
                     std::size_t copies, float* out) {
  // The last copy first: where out begins with latents, the source stays whole until the end.
  for (std::size_t copy = copies; copy-- > 0;) {
    float* target = out + copy * num_elements;
    for (std::size_t e = 0; e < num_elements; ++e) target[e] = scale * latents[e];
  }
}

bool images_to_uint8(const float* images, std::size_t batch, std::size_t num_pixels,
                     std::uint8_t* out) {
  // The loop that converts vectorises; pixels leave its buffer four bytes at a time, each but the
  // last of a block with one byte too many, which the next one overwrites.
  std::uint32_t levels[kBlock];
  std::uint32_t not_finite = 0;
  for (std::size_t n = 0; n < batch; ++n) {
    const float* const red = images + n * 3 * num_pixels;
    const float* const green = red + num_pixels;
    const float* const blue = green + num_pixels;
    std::uint8_t* pixels = out + n * num_pixels * 3;
    for (std::size_t offset = 0; offset < num_pixels; offset += kBlock) {
      const std::size_t count = std::min(kBlock, num_pixels - offset);
      for (std::size_t p = 0; p < count; ++p) {
        const float r = red[offset + p], g = green[offset + p], b = blue[offset + p];
        not_finite |= is_not_finite(r) | is_not_finite(g) | is_not_finite(b);
        levels[p] = to_level(r) | to_level(g) << 8 | to_level(b) << 16;
      }
      std::uint8_t* target = pixels + offset * 3;
      for (std::size_t p = 0; p + 1 < count; ++p) std::memcpy(target + p * 3, levels + p, 4);
      std::memcpy(target + (count - 1) * 3, levels + count - 1, 3);
    }
  }
  return not_finite == 0;
}

}  // namespace sdengine::cpu
