#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "cpu/philox_normal.h"

namespace {

using sdengine::cpu::box_muller_sine;
using sdengine::cpu::philox4x32_10;
using sdengine::cpu::PhiloxCounter;
using sdengine::cpu::PhiloxKey;
using sdengine::cpu::PhiloxNormal;

// The known answers that the Random123 library publishes for philox4x32-10.
void known_answers() {
  const PhiloxCounter zeros = philox4x32_10({0, 0, 0, 0}, PhiloxKey{0, 0});
  CHECK(zeros == (PhiloxCounter{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  const std::uint32_t ones = 0xffffffffu;
  const PhiloxCounter full = philox4x32_10({ones, ones, ones, ones}, PhiloxKey{ones, ones});
  CHECK(full == (PhiloxCounter{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  const PhiloxCounter pi = philox4x32_10({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u},
                                         PhiloxKey{0xa4093822u, 0x299f31d0u});
  CHECK(pi == (PhiloxCounter{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

// The same transform of the same fp32 radius and angle by the standard library in fp64.
double box_muller_in_double(std::uint32_t radius_word, std::uint32_t angle_word) {
  const double cell = std::ldexp(1.0, -32), two_pi = 2 * std::acos(-1.0);
  const float u =
      static_cast<float>(radius_word) * static_cast<float>(cell) + static_cast<float>(cell) / 2;
  const float angle = static_cast<float>(angle_word) * static_cast<float>(cell * two_pi) +
                      static_cast<float>(cell * two_pi) / 2;
  return std::sqrt(-2.0 * std::log(static_cast<double>(u))) * std::sin(static_cast<double>(angle));
}

void transform_is_box_muller() {
  std::vector<std::uint32_t> words{0, 1, 2, 3, 0xffffffffu, 0xfffffffeu, 0xffffff7fu, 0xffffff80u};
  for (std::uint32_t i = 1; i < 64; ++i) {  // around multiples of pi / 32 and powers of two
    words.push_back(i << 26);
    words.push_back((i << 26) - 1);
    words.push_back(std::uint32_t{1} << (i / 2));
  }
  for (const std::uint32_t radius : words) {
    for (const std::uint32_t angle : words) {
      CHECK_NEAR(box_muller_sine(radius, angle), box_muller_in_double(radius, angle), 2e-6);
    }
  }
}

void length_of_a_draw_changes_no_value() {
  std::vector<float> longest(1000);
  PhiloxNormal(11).fill(longest.data(), longest.size());
  for (const std::size_t count : {1u, 63u, 64u, 65u, 999u}) {
    std::vector<float> values(count + 1, 9.0f);
    PhiloxNormal(11).fill(values.data(), count);
    CHECK(values.back() == 9.0f);  // nothing beyond the end
    values.pop_back();
    CHECK(values == std::vector<float>(longest.begin(), longest.begin() + values.size()));
  }
}

void draws_differ_and_repeat() {
  PhiloxNormal first(3), second(3);
  std::vector<float> a(100), b(100), c(100);
  first.fill(a.data(), a.size());
  first.fill(b.data(), b.size());
  second.fill(c.data(), c.size());
  CHECK(a == c);
  CHECK(a != b);
}

void mean_and_variance() {
  PhiloxNormal generator(7);
  std::vector<float> values(100000);
  generator.fill(values.data(), values.size());
  double sum = 0, squares = 0;
  for (const float value : values) {
    sum += value;
    squares += static_cast<double>(value) * value;
  }
  const double count = static_cast<double>(values.size());
  CHECK(std::abs(sum / count) < 0.02);
  CHECK(std::abs(squares / count - 1) < 0.02);
}

}  // namespace

int main() {
  return check::run_all({{"known_answers", known_answers},
                         {"transform_is_box_muller", transform_is_box_muller},
                         {"length_of_a_draw_changes_no_value", length_of_a_draw_changes_no_value},
                         {"draws_differ_and_repeat", draws_differ_and_repeat},
                         {"mean_and_variance", mean_and_variance}});
}
