// The host's 16-bit numbers, against the definitions of the formats.

#include "check.h"
#include "cpu/numbers.h"

namespace {

using namespace sdengine::cpu;

void halves_are_what_the_format_says() {
  CHECK(to_float(Half{0x3c00}) == 1.0f && to_float(Half{0xc000}) == -2.0f);
  CHECK(to_float(Half{0x0001}) == 0x1p-24f && to_float(Half{0x0400}) == 0x1p-14f);
  CHECK(to_float(Half{0x7bff}) == 65504.0f && std::isinf(to_float(Half{0x7c00})));
  CHECK(std::isnan(to_float(Half{0x7e00})) && std::signbit(to_float(Half{0x8000})));
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Half half{static_cast<std::uint16_t>(bits)};
    if ((bits & 0x7fff) <= 0x7c00) CHECK(from_float<Half>(to_float(half)).bits == bits);
  }
}

void halves_round_to_nearest_even() {
  CHECK(from_float<Half>(1.0f + 0x1p-11f).bits == 0x3c00);
  CHECK(from_float<Half>(1.0f + 3 * 0x1p-11f).bits == 0x3c02);
  CHECK(from_float<Half>(65519.0f).bits == 0x7bff && from_float<Half>(65520.0f).bits == 0x7c00);
  CHECK(from_float<Half>(-1e30f).bits == 0xfc00 && from_float<Half>(1.99999f).bits == 0x4000);
  CHECK(from_float<Half>(0x1p-25f).bits == 0 && from_float<Half>(0x1.8p-25f).bits == 1);
  CHECK(from_float<Half>(0x1p-14f - 0x1p-25f).bits == 0x0400);
  CHECK(from_float<Half>(std::nanf("")).bits == 0x7e00);
}

void bfloats_round_to_nearest_even() {
  CHECK(from_float<BFloat16>(1.0f + 0x1p-8f).bits == 0x3f80);
  CHECK(from_float<BFloat16>(1.0f + 3 * 0x1p-8f).bits == 0x3f82);
  CHECK(to_float(BFloat16{0xc040}) == -3.0f);
  CHECK(std::isnan(to_float(from_float<BFloat16>(std::nanf("")))));
  CHECK(std::isinf(to_float(from_float<BFloat16>(3.4e38f))));
}

}  // namespace

int main() {
  return check::run_all({{"halves_are_what_the_format_says", halves_are_what_the_format_says},
                         {"halves_round_to_nearest_even", halves_round_to_nearest_even},
                         {"bfloats_round_to_nearest_even", bfloats_round_to_nearest_even}});
}
