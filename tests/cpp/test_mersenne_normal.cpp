#include <algorithm>
#include <vector>

#include "check.h"
#include "cpu/mersenne_normal.h"

namespace {

using sdengine::cpu::MersenneNormal;

std::vector<float> draw(MersenneNormal& generator, std::size_t count) {
  std::vector<float> values(count);
  generator.fill(values.data(), count);
  return values;
}

// What torch.randn gives after torch.manual_seed(0).
void known_values() {
  MersenneNormal small(0), large(0);
  const std::vector<float> few = draw(small, 4), many = draw(large, 16);
  const double expected_few[]{1.5410, -0.2934, -2.1788, 0.5684};
  const double expected_many[]{-1.1258, -1.1524, -0.2506, -0.4339};
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK_NEAR(few[i], expected_few[i], 5e-5);
    CHECK_NEAR(many[i], expected_many[i], 5e-5);
  }
}

void only_low_bits_of_the_seed_count() {
  MersenneNormal low(7), high((std::uint64_t{5} << 32) + 7), other(8);
  const std::vector<float> values = draw(low, 100);
  CHECK(values == draw(high, 100));
  CHECK(values != draw(other, 100));
}

void small_draws_continue_a_pair() {
  MersenneNormal once(3), parts(3);
  const std::vector<float> whole = draw(once, 9);
  std::vector<float> joined;
  for (const std::size_t count : {1, 3, 0, 5}) {
    const std::vector<float> part = draw(parts, count);
    joined.insert(joined.end(), part.begin(), part.end());
  }
  CHECK(whole == joined);
}

void large_draws_keep_the_pair() {
  MersenneNormal alone(4), mixed(4);
  const float kept = draw(alone, 2)[1];
  draw(mixed, 1);
  draw(mixed, 33);
  CHECK(draw(mixed, 1)[0] == kept);
}

void rest_redraws_the_last_block() {
  MersenneNormal even(5), odd(5);
  const std::vector<float> first = draw(even, 32), second = draw(odd, 36);
  CHECK(std::equal(first.begin(), first.begin() + 20, second.begin()));
  CHECK(!std::equal(first.begin() + 20, first.end(), second.begin() + 20));
}

void values_are_standard_normal() {
  MersenneNormal generator(6);
  const std::vector<float> values = draw(generator, 200003);
  double sum = 0, squares = 0;
  for (const float value : values) {
    CHECK(std::isfinite(value));
    sum += value;
    squares += static_cast<double>(value) * value;
  }
  const auto count = static_cast<double>(values.size());
  CHECK_NEAR(sum / count, 0.0, 0.01);
  CHECK_NEAR(squares / count, 1.0, 0.01);
}

}  // namespace

int main() {
  return check::run_all({{"known_values", known_values},
                         {"only_low_bits_of_the_seed_count", only_low_bits_of_the_seed_count},
                         {"small_draws_continue_a_pair", small_draws_continue_a_pair},
                         {"large_draws_keep_the_pair", large_draws_keep_the_pair},
                         {"rest_redraws_the_last_block", rest_redraws_the_last_block},
                         {"values_are_standard_normal", values_are_standard_normal}});
}
