#include <algorithm>
#include <cmath>

#include "cpu/finite.h"
#include "cpu/kernels.h"

namespace sdengine::cpu {

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
  std::uint32_t not_finite = 0;
  for (std::size_t plane = 0; plane < 3 * batch; ++plane) {
    const float* source = images + plane * num_pixels;
    std::uint8_t* target = out + (plane / 3) * num_pixels * 3 + plane % 3;
    for (std::size_t p = 0; p < num_pixels; ++p) {
      const float value = source[p];
      const std::uint32_t bad = is_not_finite(value);
      not_finite |= bad;
      const float unit = std::min(std::max(value * 0.5f + 0.5f, 0.0f), 1.0f);
      // NaN has no integer; it must not reach the conversion.
      const float level = std::nearbyint(bad != 0 ? 0.0f : unit * 255.0f);
      target[p * 3] = static_cast<std::uint8_t>(level);
    }
  }
  return not_finite == 0;
}

}  // namespace sdengine::cpu
