#include <limits>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"

namespace {

using sdengine::cpu::images_to_uint8;
using sdengine::cpu::scale_duplicate;

void scales_and_duplicates() {
  const std::vector<float> latents{1.0f, -2.0f, 3.5f};
  for (const std::size_t copies : {1, 2}) {
    std::vector<float> out(latents.size() * copies);
    scale_duplicate(latents.data(), latents.size(), 0.5f, copies, out.data());
    for (std::size_t e = 0; e < out.size(); ++e) CHECK(out[e] == 0.5f * latents[e % 3]);
  }
}

void scales_in_place() {
  std::vector<float> values{1.0f, 2.0f, 0.0f, 0.0f};
  scale_duplicate(values.data(), 2, 3.0f, 2, values.data());
  CHECK((values == std::vector<float>{3.0f, 6.0f, 3.0f, 6.0f}));
}

void interleaves_channels() {
  // Two images of two pixels; every value is the level it shall become.
  std::vector<float> images(12);
  for (std::size_t i = 0; i < images.size(); ++i) {
    images[i] = static_cast<float>(i) * 10.0f / 255.0f * 2.0f - 1.0f;
  }
  std::vector<std::uint8_t> pixels(12);
  CHECK(images_to_uint8(images.data(), 2, 2, pixels.data()));
  const std::vector<std::uint8_t> expected{0, 20, 40, 10, 30, 50, 60, 80, 100, 70, 90, 110};
  CHECK(pixels == expected);
}

void clamps_and_rounds_to_even() {
  const std::vector<float> images{-5.0f, 5.0f, 0.0f};  // 0.0 is 127.5
  std::vector<std::uint8_t> pixels(3);
  CHECK(images_to_uint8(images.data(), 1, 1, pixels.data()));
  CHECK((pixels == std::vector<std::uint8_t>{0, 255, 128}));
}

void reports_what_is_not_finite() {
  const float inf = std::numeric_limits<float>::infinity();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), inf, -inf}) {
    std::vector<float> images(3 * 50, 0.25f);
    images[149] = bad;
    std::vector<std::uint8_t> pixels(images.size());
    CHECK(!images_to_uint8(images.data(), 1, 50, pixels.data()));
  }
}

}  // namespace

int main() {
  return check::run_all({{"scales_and_duplicates", scales_and_duplicates},
                         {"scales_in_place", scales_in_place},
                         {"interleaves_channels", interleaves_channels},
                         {"clamps_and_rounds_to_even", clamps_and_rounds_to_even},
                         {"reports_what_is_not_finite", reports_what_is_not_finite}});
}
