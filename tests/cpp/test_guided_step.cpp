#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"

namespace {

using sdengine::StepCoefficients;
using sdengine::cpu::guided_step;

struct Step {
  std::size_t R, n;
  bool has_guidance;
  std::vector<float> registers, noise_pred, noise;
  std::vector<double> A, b, d;

  Step(std::size_t num_registers, std::size_t num_elements, bool guided)
      : R(num_registers),
        n(num_elements),
        has_guidance(guided),
        registers(R * n),
        noise_pred(guided ? 2 * n : n),
        noise(n),
        A(R * R),
        b(R),
        d(R) {
    std::mt19937 engine(static_cast<unsigned>(R * 1000 + n));
    std::normal_distribution<double> normal;
    for (auto* values : {&registers, &noise_pred, &noise}) {
      for (float& value : *values) value = static_cast<float>(normal(engine));
    }
    for (auto* values : {&A, &b, &d}) {
      for (double& value : *values) value = normal(engine);
    }
  }

  bool run(bool noisy) {
    return guided_step(registers.data(), noise_pred.data(), noisy ? noise.data() : nullptr, n,
                       has_guidance, 7.5, StepCoefficients{A.data(), b.data(), d.data(), R});
  }

  double expected(std::size_t i, std::size_t e, bool noisy) const {
    double guided = noise_pred[e];
    if (has_guidance) guided += 7.5 * (static_cast<double>(noise_pred[n + e]) - guided);
    double sum = b[i] * guided + (noisy ? d[i] * static_cast<double>(noise[e]) : 0.0);
    for (std::size_t j = 0; j < R; ++j)
      sum += A[i * R + j] * static_cast<double>(registers[j * n + e]);
    return sum;
  }
};

void matches_the_formula() {
  for (const std::size_t R : {1, 2, 3, 8}) {
    for (const std::size_t n : {1, 7, 255, 256, 257, 4096}) {
      for (const bool guided : {false, true}) {
        for (const bool noisy : {false, true}) {
          Step step(R, n, guided);
          const Step before = step;
          CHECK(step.run(noisy));
          for (std::size_t i = 0; i < R; ++i) {
            for (std::size_t e = 0; e < n; ++e) {
              const double wanted = before.expected(i, e, noisy);
              CHECK_NEAR(step.registers[i * n + e], wanted, 1e-6 * (1 + std::fabs(wanted)));
            }
          }
        }
      }
    }
  }
}

void reports_what_is_not_finite() {
  for (const std::size_t position : {std::size_t{0}, std::size_t{256}, std::size_t{999}}) {
    Step step(2, 1000, true);
    step.noise_pred[position] = std::numeric_limits<float>::quiet_NaN();
    CHECK(!step.run(true));
    Step other(2, 1000, false);
    other.noise_pred[position] = std::numeric_limits<float>::infinity();
    CHECK(!other.run(false));
  }
}

void ignores_registers_without_weight() {
  Step step(2, 300, false);
  step.A = {1.0, 0.0, 0.5, 0.0};
  for (std::size_t e = 0; e < step.n; ++e) {
    step.registers[step.n + e] = std::numeric_limits<float>::quiet_NaN();
  }
  CHECK(step.run(false));
}

void accepts_nothing() {
  Step step(2, 0, false);
  CHECK(step.run(true));
}

void refuses_too_many_registers() {
  Step step(sdengine::kMaxRegisters + 1, 4, false);
  CHECK_THROWS(std::invalid_argument, step.run(false));
}

}  // namespace

int main() {
  return check::run_all({{"matches_the_formula", matches_the_formula},
                         {"reports_what_is_not_finite", reports_what_is_not_finite},
                         {"ignores_registers_without_weight", ignores_registers_without_weight},
                         {"accepts_nothing", accepts_nothing},
                         {"refuses_too_many_registers", refuses_too_many_registers}});
}
