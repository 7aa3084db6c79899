#include <cmath>
#include <vector>

#include "check.h"
#include "cpu/philox_normal.h"

namespace {

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
                         {"draws_differ_and_repeat", draws_differ_and_repeat},
                         {"mean_and_variance", mean_and_variance}});
}
